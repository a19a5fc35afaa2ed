"""Convert a guided-diffusion checkpoint into a folder for `DiffusionPipeline.from_pretrained`, or back.

python convert_checkpoint.py 256x256_diffusion_uncond.pt --output my-model
"""

from blended_diffusion.commands.convert import main


if __name__ == "__main__":
    main()
