"""The flags that commands share.

What belongs here is how a flag is spelled and explained, and which ones travel together. What a command does with them
does not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from blended_diffusion.commands.groups import INPUT, MACHINE, METHOD, OUTPUT, flag
from blended_diffusion.commands.model_request import ModelRequest
from blended_diffusion.commands.parsers import lora_and_weight, one_of, setting


InitImage = Annotated[str, flag(INPUT, "--init_image -i", "The photo.", "FILE")]
NumImages = Annotated[int, flag(OUTPUT, "--num-images", "How many candidates.", "N", setting("num_images"))]
Seed = Annotated[int, flag(OUTPUT, "--seed", "Of the first candidate; the next ones count on.", "N", setting("seed"))]
Resume = Annotated[
    bool, flag(OUTPUT, "--resume", "Keep what an interrupted run has finished and make what is missing.")
]
VideoFormat = Annotated[str, flag(OUTPUT, "--vid-format", "Of the films.", "mp4|gif", one_of("mp4", "gif"))]
Steps = Annotated[
    int | None,
    flag(
        METHOD,
        "--num-inference-steps",
        "Steps of the whole way from noise to picture.",
        "N",
        setting("num_inference_steps"),
    ),
]
Context = Annotated[
    float,
    flag(
        METHOD,
        "--context",
        "Margin of the square round the mask, as a share of the mask's longer side; 99 takes in all there is.",
        "X",
        setting("context"),
    ),
]
Device = Annotated[str | None, flag(MACHINE, "--device", "cpu, cuda, cuda:1, mps … [default: what there is]", "NAME")]
Quiet = Annotated[bool, flag(MACHINE, "--quiet", "No progress and no summary.")]


@dataclass(frozen=True)
class FolderFlags:
    """Where to write."""

    output_path: Annotated[str, flag(OUTPUT, "--output_path", "Where to write.", "FOLDER")] = "output"

    @property
    def folder(self) -> Path:
        return Path(self.output_path)


@dataclass(frozen=True)
class OutputFlags(FolderFlags):
    """Where candidates are written, and which."""

    num_images: NumImages = 4
    seed: Seed = 404
    resume: Resume = False


@dataclass(frozen=True)
class ResumingOutputFlags(OutputFlags):
    """Likewise, of a command that goes on unless it is told not to."""

    resume: Annotated[
        bool, flag(OUTPUT, "--resume/--no-resume", "Keep what is finished already, or make all of it again.")
    ] = True


@dataclass(frozen=True)
class FilmFlags:
    """What is shown of each candidate's making."""

    vid: Annotated[bool, flag(OUTPUT, "--vid", "Write a film of each candidate's making to films/.")] = False
    vid_format: VideoFormat = "mp4"
    strip: Annotated[
        int | None,
        flag(
            OUTPUT,
            "--strip",
            "Write K steps of each candidate's making side by side to films/.",
            "K",
            setting("num_images"),
        ),
    ] = None

    @property
    def film(self) -> str | None:
        """The format of the films, if there are to be some."""
        return self.vid_format if self.vid else None


@dataclass(frozen=True)
class MethodFlags:
    """How an edit is made, as far as all commands that edit have flags for it."""

    negative_prompt: Annotated[
        str | None, flag(INPUT, "--negative-prompt", "What the region should not show.", "WORDS")
    ] = None
    num_inference_steps: Steps = None
    strength: Annotated[
        float | None,
        flag(
            METHOD,
            "--strength",
            "How much of that way to go, up to 1: less keeps more of the source.",
            "X",
            setting("strength"),
        ),
    ] = None
    clip_guidance_scale: Annotated[
        float | None,
        flag(METHOD, "--clip-guidance-scale", "Weight of the words.", "X", setting("clip_guidance_scale")),
    ] = None
    guidance_scale: Annotated[
        float | None,
        flag(
            METHOD,
            "--guidance-scale",
            "Weight of the words, of models that understand them (classifier-free guidance).",
            "X",
            setting("guidance_scale"),
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        flag(
            METHOD,
            "--scheduler",
            "Take the steps with another scheduler: the name of a class of diffusers, such as"
            " DPMSolverMultistepScheduler.",
            "NAME",
        ),
    ] = None
    size: Annotated[
        int | None,
        flag(
            METHOD,
            "--size",
            "Paint a square of N×N pixels, of models that can paint other sizes than their own.",
            "N",
            setting("size"),
        ),
    ] = None
    fit_decoder: Annotated[
        bool,
        flag(METHOD, "--fit-decoder", "Fit a latent model's decoder to the photo, where the mask's edge shows."),
    ] = False

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of [`~blended_diffusion.painters.settings.EditSettings`] that these flags decide."""
        return {
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "strength": self.strength,
            "clip_guidance_scale": self.clip_guidance_scale,
            **self.of_text_networks,
        }

    @property
    def of_text_networks(self) -> dict[str, Any]:
        return {
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "size": self.size,
            "fit_decoder": self.fit_decoder,
        }


@dataclass(frozen=True)
class MachineFlags:
    """With what and on what an edit is made."""

    model: Annotated[
        str,
        flag(
            MACHINE,
            "--model",
            "bundled, or a folder or Hub id: a converted model, or one that diffusers has an inpainting pipeline"
            " for (Stable Diffusion, SDXL, FLUX Fill, Kandinsky, IF …).",
            "NAME",
        ),
    ] = "bundled"
    clip: Annotated[
        str | None,
        flag(
            MACHINE,
            "--clip",
            "What ranks the pictures of a model without a CLIP: a folder or Hub id, or none. [default:"
            " openai/clip-vit-base-patch16]",
            "NAME",
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        flag(MACHINE, "--lora", "Add a LoRA: a file, folder or Hub id, and how much of it; repeatable.", "NAME[=X]"),
    ] = None
    upscaler: Annotated[
        str | None, flag(MACHINE, "--upscaler", "The super-resolution stage of a DeepFloyd IF model.", "NAME")
    ] = None
    trust_remote_code: Annotated[
        bool, flag(MACHINE, "--trust-remote-code", "Run code that comes with a model whose parts are no stock ones.")
    ] = False
    offload: Annotated[
        str | None,
        flag(
            MACHINE,
            "--offload",
            "Keep on the GPU only what computes: whole networks (model), or layer by layer (sequential).",
            "model|sequential",
            one_of("model", "sequential"),
        ),
    ] = None
    vae_tiling: Annotated[
        bool, flag(MACHINE, "--vae-tiling", "Let an autoencoder go over large pictures in tiles.")
    ] = False
    vae_slicing: Annotated[bool, flag(MACHINE, "--vae-slicing", "Let an autoencoder go over a batch one by one.")] = (
        False
    )
    batch_size: Annotated[
        int,
        flag(
            MACHINE,
            "--batch_size",
            "Candidates computed together; halved when memory runs out.",
            "N",
            setting("num_images"),
        ),
    ] = 4
    device: Device = None
    dtype: Annotated[
        str | None,
        flag(
            MACHINE,
            "--dtype",
            "Of the networks. [default: accelerate's mixed precision, else float32, and bfloat16 for large networks"
            " where the device is quick in it]",
            "float32|bfloat16|float16",
            one_of("float32", "bfloat16", "float16"),
        ),
    ] = None

    @property
    def request(self) -> ModelRequest:
        """The model that they ask for, and how it is to save memory.

        Raises:
            ValueError: `--lora` has no number behind its `=`.
        """
        return ModelRequest(
            name=self.model,
            clip=self.clip,
            loras=tuple(lora_and_weight(text) for text in self.lora or ()),
            upscaler=self.upscaler,
            trust_remote_code=self.trust_remote_code,
            offload=self.offload,
            vae_tiling=self.vae_tiling,
            vae_slicing=self.vae_slicing,
        )
