"""`blended-diffusion edit`: one region, several candidates."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from blended_diffusion.commands.flags import (
    INPUT,
    METHOD,
    OUTPUT,
    RELEASED,
    BatchSize,
    ClipScale,
    Context,
    Device,
    Dtype,
    InitImage,
    ModelName,
    NegativePrompt,
    OutputPath,
    Quiet,
    Resume,
    Seed,
    Steps,
    Strength,
    count,
    either,
    flag,
    one_of,
    scale,
    whole_number,
)
from blended_diffusion.commands.running import hint_at_words, load, make_all, show
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.records import EditSettings


EDIT_HELP = "\n\n".join(
    [
        "Edit the masked region of a photo; write several candidates, best first.",
        "The photo keeps its size: the model sees the square round the mask, and its picture is put back inside the"
        " mask alone. Each candidate is written to ranked/ in the output folder the moment it is done, its name"
        " starting with its CLIP distance (lower is better); at the end come contact_sheet.png and before_after.png.",
        "The bundled model is a small one for trying things out: it paints 64×64 pixels, and it knows"
        f" {len(KNOWN_WORDS)} things: {', '.join(KNOWN_WORDS)}. For larger pictures and any words, convert a published"
        " checkpoint (blended-diffusion convert) and name its folder with --model.",
        "Every flag may be written with dashes or underscores. Exit codes: 0, 2 for bad input, 1 for failure, 130 when"
        " interrupted.",
    ]
)


def stem_of(output_file: str) -> str:
    """The stem of a file's name.

    Raises:
        ValueError: it is a path, or not a PNG.
    """
    path = Path(output_file)
    if path.name != output_file or not path.stem:
        raise ValueError(
            f"--output_file {output_file!r} is not a plain name; give one, and the folder as --output_path."
        )
    if path.suffix not in ("", ".png"):
        raise ValueError(f"--output_file {output_file!r} ends in {path.suffix!r}; results are lossless: give a .png.")
    return path.stem


def edit(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the masked region should show.", "WORDS")],
    init_image: InitImage,
    mask: Annotated[
        str | None,
        flag(INPUT, "--mask", "White is edited, black is kept; of the photo's size. [default: all is edited]", "FILE"),
    ] = None,
    invert_mask: Annotated[bool, flag(INPUT, "--invert_mask", "Edit the mask's black instead.")] = False,
    negative_prompt: NegativePrompt = None,
    output_path: OutputPath = "output",
    output_file: Annotated[
        str, flag(OUTPUT, "--output_file -o", "Its stem becomes part of the pictures' names.", "NAME")
    ] = "output.png",
    num_images: Annotated[
        int | None, flag(OUTPUT, "--num-images", "How many candidates. [default: 4]", "N", count)
    ] = None,
    seed: Seed = 404,
    resume: Resume = False,
    vid: Annotated[bool, flag(OUTPUT, "--vid", "Write a film of each candidate's making to films/.")] = False,
    vid_format: Annotated[str, flag(OUTPUT, "--vid-format", "Of the films.", "mp4|gif", one_of("mp4", "gif"))] = "mp4",
    export_assets: Annotated[
        bool, flag(OUTPUT, "--export_assets", "Write what the model saw and painted to assets/.")
    ] = False,
    num_inference_steps: Steps = None,
    strength: Strength = None,
    clip_guidance_scale: ClipScale = None,
    range_guidance_scale: Annotated[
        float | None, flag(METHOD, "--range-guidance-scale", "Weight against colours out of range.", "X", scale)
    ] = None,
    num_augmentations: Annotated[
        int | None,
        flag(METHOD, "--num-augmentations", "Copies CLIP sees: one plain, the others warped.", "N", whole_number(0)),
    ] = None,
    guidance_gradient: Annotated[
        str | None,
        flag(
            METHOD,
            "--guidance-gradient",
            "sample: through the model, as released. estimate: as the paper writes it, faster.",
            "sample|estimate",
            one_of("sample", "estimate"),
        ),
    ] = None,
    ranking: Annotated[
        str,
        flag(
            METHOD,
            "--ranking",
            "What decides the order. surroundings: the region and the picture round it. region: the region alone, as"
            " released.",
            "surroundings|region",
            one_of("surroundings", "region"),
        ),
    ] = EditSettings.ranking,
    context: Context = EditSettings.context,
    ddim: Annotated[bool, flag(METHOD, "--ddim", "Take the steps with DDIM.")] = False,
    local_clip_guided_diffusion: Annotated[
        bool, flag(METHOD, "--local_clip_guided_diffusion", "The paper's baseline: do not blend in the background.")
    ] = False,
    background_preservation_loss: Annotated[
        bool, flag(METHOD, "--background_preservation_loss", "Guide the background towards the photo instead or too.")
    ] = False,
    lpips_sim_lambda: Annotated[
        float | None,
        flag(METHOD, "--lpips_sim_lambda", "Weight of the perceptual part of that. [default: 1000]", "X", scale),
    ] = None,
    l2_sim_lambda: Annotated[
        float | None,
        flag(METHOD, "--l2_sim_lambda", "Weight of the squared part of that. [default: 10000]", "X", scale),
    ] = None,
    no_enforce_background: Annotated[
        bool, flag(METHOD, "--no_enforce_background", "Do not put the photo's own pixels back outside the mask.")
    ] = False,
    match_release: Annotated[
        bool, flag(METHOD, "--match-release", "Do as the released code where it differs from the paper.")
    ] = False,
    timestep_respacing: Annotated[
        int | None, flag(RELEASED, "--timestep_respacing", "As --num-inference-steps.", "N", count)
    ] = None,
    skip_timesteps: Annotated[
        int | None,
        flag(RELEASED, "--skip_timesteps", "Skip the first K of N steps: --strength (N−K)/N.", "K", whole_number(0)),
    ] = None,
    clip_guidance_lambda: Annotated[
        float | None, flag(RELEASED, "--clip_guidance_lambda", "As --clip-guidance-scale.", "X", scale)
    ] = None,
    range_lambda: Annotated[
        float | None, flag(RELEASED, "--range_lambda", "As --range-guidance-scale.", "X", scale)
    ] = None,
    aug_num: Annotated[
        int | None, flag(RELEASED, "--aug_num", "As --num-augmentations.", "N", whole_number(0))
    ] = None,
    iterations_num: Annotated[
        int | None, flag(RELEASED, "--iterations_num", "As --num-images, in batches of --batch_size.", "N", count)
    ] = None,
    model_output_size: Annotated[
        int | None, flag(RELEASED, "--model_output_size", "Refuse a --model of another size.", "PIXELS", count)
    ] = None,
    gpu_id: Annotated[
        int | None, flag(RELEASED, "--gpu_id", "As --device cuda:N; without CUDA, the CPU.", "N", whole_number(0))
    ] = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    steps = either(**{"--num-inference-steps": num_inference_steps, "--timestep_respacing": timestep_respacing})
    either(**{"--strength": strength, "--skip_timesteps": skip_timesteps})
    clip_scale = either(
        **{"--clip-guidance-scale": clip_guidance_scale, "--clip_guidance_lambda": clip_guidance_lambda}
    )
    range_scale = either(**{"--range-guidance-scale": range_guidance_scale, "--range_lambda": range_lambda})
    copies = either(**{"--num-augmentations": num_augmentations, "--aug_num": aug_num})
    either(**{"--num-images": num_images, "--iterations_num": iterations_num})
    total = num_images or (4 if iterations_num is None else iterations_num * batch_size)
    either(**{"--device": device, "--gpu_id": gpu_id})
    stem = stem_of(output_file)
    if invert_mask and mask is None:
        raise ValueError("--invert_mask needs a --mask to invert.")
    if not background_preservation_loss and (lpips_sim_lambda, l2_sim_lambda) != (None, None):
        show("note: --lpips_sim_lambda and --l2_sim_lambda do nothing without --background_preservation_loss")

    # what is wrong with the files is said before torch is waited for
    from blended_diffusion import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if mask is None else inputs.read_mask(mask, photo.image.size, invert_mask, "--mask")

    from blended_diffusion import candidates, machine
    from blended_diffusion.editor import FolderEditor

    folder = Path(output_path)
    earlier = candidates.find_run(folder, "--output_path") if resume else None
    place = machine.find_device(machine.released_device(gpu_id) if gpu_id is not None else device, "--device")
    machine.be_reproducible(None if earlier is None else earlier.made_with.threads)
    loaded = load(model, machine.find_dtype(dtype, "--dtype"), place)
    if model_output_size not in (None, loaded.size):
        raise ValueError(
            f"--model_output_size {model_output_size}: --model {loaded.name!r} makes pictures of"
            f" {loaded.size}×{loaded.size}; give --model one of {model_output_size} pixels, made by `blended-diffusion"
            " convert` from the published checkpoint of that size."
        )
    if loaded.name == "bundled":
        hint_at_words(prompt)
    if skip_timesteps is not None:
        whole = steps or loaded.pipe.config.default_num_inference_steps
        if skip_timesteps >= whole:
            raise ValueError(
                f"--skip_timesteps {skip_timesteps} leaves none of {whole} steps; give less than {whole}."
            )
        strength = (whole - skip_timesteps) / whole

    settings = EditSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        strength=strength,
        clip_guidance_scale=clip_scale,
        range_guidance_scale=range_scale,
        num_augmentations=copies,
        guidance_gradient=guidance_gradient,
        blend=not local_clip_guided_diffusion,
        enforce_background=not no_enforce_background,
        match_release=match_release,
        ddim=ddim,
        invert_mask=invert_mask,
        ranking=ranking,
        context=context,
    )
    if background_preservation_loss:
        settings = replace(
            settings,
            background_lpips_scale=1000.0 if lpips_sim_lambda is None else lpips_sim_lambda,
            background_mse_scale=10000.0 if l2_sim_lambda is None else l2_sim_lambda,
        )
    made_with = machine.describe(place, loaded.pipe.unet.dtype)
    if earlier is not None and (changed := earlier.made_with.differences(made_with)):
        show(
            f"note: what is finished was made with another {', '.join(changed)}; the rest may differ in its last bits"
        )
    editor = FolderEditor(
        loaded,
        folder,
        made_with,
        seed=seed,
        num_images=total,
        batch_size=batch_size,
        resume=resume,
        stem=stem,
        film=vid_format if vid else None,
        assets=export_assets,
        make=partial(make_all, quiet=quiet),
        argument="--output_path",
    )
    editor.edit(photo, region, settings)
