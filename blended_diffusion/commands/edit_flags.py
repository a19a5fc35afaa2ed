"""The flags that `blended-diffusion edit` alone has, the released editor's among them.

What belongs here is how they are spelled and explained, and what they say together: a released flag stands in the
group of what it is another name for.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from blended_diffusion.commands.flags import Context, FolderFlags, MachineFlags, MethodFlags, Resume, Seed
from blended_diffusion.commands.groups import INPUT, MACHINE, METHOD, OUTPUT, RELEASED, flag
from blended_diffusion.commands.masking import MaskFlags
from blended_diffusion.commands.model_request import ModelRequest
from blended_diffusion.commands.parsers import (
    at_least,
    first_given,
    mask_growth,
    one_of,
    refuse_both,
    setting,
    strengths_with_commas,
    words_with_commas,
)
from blended_diffusion.painters.limits import CHOICES
from blended_diffusion.painters.settings import EditSettings


if TYPE_CHECKING:
    from blended_diffusion.pictures.inputs import Photo


@dataclass(frozen=True)
class EditMaskFlags(MaskFlags):
    """Where to edit, and how the edit fades in there."""

    feather: Annotated[
        float | None,
        flag(
            INPUT,
            "--feather",
            "Let the edit fade in over so many of the photo's pixels inside the mask's edge. [default: the width of"
            " one of the model's pixels]",
            "N",
            setting("feather"),
        ),
    ] = None
    mask_is_change_map: Annotated[
        bool,
        flag(
            INPUT,
            "--mask-is-change-map",
            "The greys of --mask say how much: white changes all the way, black not at all, and grey in its share of"
            " the last steps alone.",
        ),
    ] = False
    scribble: Annotated[
        str | None,
        flag(INPUT, "--scribble", "A copy of the photo, painted on: edit the paint into what the words say.", "FILE"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scribble is not None and self.sources:
            raise ValueError(f"{self.sources[0]} and --scribble both say where to edit; give one of them.")
        if self.feather is not None and self.scribble is None and not self.sources:
            raise ValueError("--feather needs a --mask, or another flag that says where to edit, such as --box.")
        if self.mask_is_change_map and self.mask is None:
            raise ValueError("--mask-is-change-map needs a --mask, whose greys say how much; no other mask has greys.")
        if self.mask_is_change_map and self.grow:
            raise ValueError(
                "--mask-is-change-map does not go with --grow, which knows no greys; leave one of them out."
            )

    def read_scribble(self, photo: "Photo") -> "Photo | None":
        """The painted copy of the photo, if there is one."""
        from blended_diffusion.pictures.inputs import read_photo

        return None if self.scribble is None else read_photo(self.scribble, "--scribble", photo.image.size)


@dataclass(frozen=True)
class EditOutputFlags(FolderFlags):
    """Where candidates are written, and which."""

    num_images: Annotated[
        int | None, flag(OUTPUT, "--num-images", "How many candidates. [default: 4]", "N", setting("num_images"))
    ] = None
    seed: Seed = 404
    resume: Resume = False
    output_file: Annotated[
        str, flag(OUTPUT, "--output_file -o", "Its stem becomes part of the pictures' names.", "NAME")
    ] = "output.png"
    iterations_num: Annotated[
        int | None,
        flag(RELEASED, "--iterations_num", "As --num-images, in batches of --batch_size.", "N", setting("num_images")),
    ] = None

    def __post_init__(self) -> None:
        refuse_both(self, ("--num-images", "--iterations_num"))
        path = Path(self.output_file)
        if path.name != self.output_file or not path.stem:
            raise ValueError(
                f"--output_file {self.output_file!r} is not a plain name; give one, and the folder as --output_path."
            )
        if path.suffix not in ("", ".png"):
            raise ValueError(
                f"--output_file {self.output_file!r} ends in {path.suffix!r}; results are lossless: give a .png."
            )

    @property
    def stem(self) -> str:
        return Path(self.output_file).stem

    def total(self, batch_size: int) -> int:
        """How many candidates, in batches of this size."""
        return self.num_images or (4 if self.iterations_num is None else self.iterations_num * batch_size)


@dataclass(frozen=True)
class EditMethodFlags(MethodFlags):
    """How the edit is guided; each of some flags has a released synonym."""

    strengths: Annotated[
        str | None,
        flag(METHOD, "--strengths", "Edit at each of these strengths, and write a strip of them.", "X,X,…"),
    ] = None
    range_guidance_scale: Annotated[
        float | None,
        flag(
            METHOD,
            "--range-guidance-scale",
            "Weight against colours out of range.",
            "X",
            setting("range_guidance_scale"),
        ),
    ] = None
    num_augmentations: Annotated[
        int | None,
        flag(
            METHOD,
            "--num-augmentations",
            "Copies CLIP sees: one plain, the others warped.",
            "N",
            setting("num_augmentations"),
        ),
    ] = None
    guidance_gradient: Annotated[
        str | None,
        flag(
            METHOD,
            "--guidance-gradient",
            "sample: through the model, as released. estimate: as the paper writes it, faster.",
            "|".join(CHOICES["guidance_gradient"]),
            one_of(*CHOICES["guidance_gradient"]),
        ),
    ] = None
    timestep_respacing: Annotated[
        int | None, flag(RELEASED, "--timestep_respacing", "As --num-inference-steps.", "N", at_least(1))
    ] = None
    skip_timesteps: Annotated[
        int | None,
        flag(RELEASED, "--skip_timesteps", "Skip the first K of N steps: --strength (N−K)/N.", "K", at_least(0)),
    ] = None
    clip_guidance_lambda: Annotated[
        float | None,
        flag(RELEASED, "--clip_guidance_lambda", "As --clip-guidance-scale.", "X", setting("clip_guidance_scale")),
    ] = None
    range_lambda: Annotated[
        float | None,
        flag(RELEASED, "--range_lambda", "As --range-guidance-scale.", "X", setting("range_guidance_scale")),
    ] = None
    aug_num: Annotated[
        int | None, flag(RELEASED, "--aug_num", "As --num-augmentations.", "N", setting("num_augmentations"))
    ] = None

    def __post_init__(self) -> None:
        refuse_both(
            self,
            ("--num-inference-steps", "--timestep_respacing"),
            ("--strength", "--skip_timesteps"),
            ("--strength", "--strengths"),
            ("--strengths", "--skip_timesteps"),
        )
        if self.strengths is not None:
            strengths_with_commas(self.strengths)
        refuse_both(
            self,
            ("--clip-guidance-scale", "--clip_guidance_lambda"),
            ("--range-guidance-scale", "--range_lambda"),
            ("--num-augmentations", "--aug_num"),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": first_given(self.num_inference_steps, self.timestep_respacing),
            "strength": self.strength,
            "clip_guidance_scale": first_given(self.clip_guidance_scale, self.clip_guidance_lambda),
            "range_guidance_scale": first_given(self.range_guidance_scale, self.range_lambda),
            "num_augmentations": first_given(self.num_augmentations, self.aug_num),
            "guidance_gradient": self.guidance_gradient,
            **self.of_text_networks,
        }

    def strength_of(self, num_inference_steps: int) -> float | None:
        """`--strength`, or what `--skip_timesteps` leaves of so many steps.

        Raises:
            ValueError: that is none.
        """
        if self.skip_timesteps is None:
            return self.strength
        if self.skip_timesteps >= num_inference_steps:
            raise ValueError(
                f"--skip_timesteps {self.skip_timesteps} leaves none of {num_inference_steps} steps; give less than"
                f" {num_inference_steps}."
            )
        return (num_inference_steps - self.skip_timesteps) / num_inference_steps


@dataclass(frozen=True)
class RankingFlags:
    """What decides the order of the candidates."""

    ranking: Annotated[
        str,
        flag(
            METHOD,
            "--ranking",
            "What decides the order. surroundings: the region and the picture round it. region: the region alone, as"
            " released. none: nothing, and no CLIP is needed.",
            "|".join(CHOICES["ranking"]),
            one_of(*CHOICES["ranking"]),
        ),
    ] = EditSettings.ranking
    candidate_labels: Annotated[
        str | None,
        flag(
            METHOD,
            "--candidate-labels",
            "Other things that a result could be taken for, with commas between: ranked is by what sets it apart from"
            " them.",
            "WORDS,…",
        ),
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        labels = self.candidate_labels
        return {"ranking": self.ranking, "candidate_labels": None if labels is None else words_with_commas(labels)}


@dataclass(frozen=True)
class WindowFlags:
    """The square that the model sees, and how its picture comes back into the photo."""

    context: Context = EditSettings.context
    detail: Annotated[
        int,
        flag(
            METHOD,
            "--detail",
            "Refine the edit at N times the model's size, by overlapping windows: for regions much larger than that.",
            "N",
            setting("detail"),
        ),
    ] = EditSettings.detail
    no_match_grain: Annotated[
        bool,
        flag(METHOD, "--no-match-grain", "Do not give what is enlarged the grain that the photo has round the mask."),
    ] = False
    initial_mask_growth: Annotated[
        Any,
        flag(
            METHOD,
            "--initial-mask-growth",
            "How far the first step's mask reaches past the wanted one, as a share of the window's width; it shrinks"
            " over the steps. auto: until a small mask fills three tenths of the window. [default: 0]",
            "X|auto",
            mask_growth,
        ),
    ] = EditSettings.initial_mask_growth

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "detail": self.detail,
            "match_grain": not self.no_match_grain,
            "initial_mask_growth": None if self.initial_mask_growth == "auto" else self.initial_mask_growth,
        }


@dataclass(frozen=True)
class WordFlags:
    """How the words are taken."""

    prompt_templates: Annotated[
        bool, flag(METHOD, "--prompt-templates", "Average the prompt over several phrasings of it; give a bare name.")
    ] = False
    typographic_defence: Annotated[
        float,
        flag(
            METHOD,
            "--typographic-defence",
            "Weight against looking like the written word; 4 is much.",
            "X",
            setting("typographic_defence"),
        ),
    ] = EditSettings.typographic_defence
    object_scale: Annotated[
        float,
        flag(
            METHOD,
            "--object-scale",
            "Weight, in the order, against objects too small or too big for the mask; 0.5 is much. Give a bare name.",
            "X",
            setting("object_scale"),
        ),
    ] = EditSettings.object_scale

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prompt_templates": self.prompt_templates,
            "typographic_defence": self.typographic_defence,
            "object_scale": self.object_scale,
        }


@dataclass(frozen=True)
class VariantFlags:
    """Other ways to take the steps and to keep the background: the paper's baseline, the released code's."""

    ddim: Annotated[bool, flag(METHOD, "--ddim", "Take the steps with DDIM.")] = False
    local_clip_guided_diffusion: Annotated[
        bool, flag(METHOD, "--local_clip_guided_diffusion", "The paper's baseline: do not blend in the background.")
    ] = False
    background_preservation_loss: Annotated[
        bool, flag(METHOD, "--background_preservation_loss", "Guide the background towards the photo instead or too.")
    ] = False
    lpips_sim_lambda: Annotated[
        float | None,
        flag(
            METHOD,
            "--lpips_sim_lambda",
            "Weight of the perceptual part of that. [default: 1000]",
            "X",
            setting("background_lpips_scale"),
        ),
    ] = None
    l2_sim_lambda: Annotated[
        float | None,
        flag(
            METHOD,
            "--l2_sim_lambda",
            "Weight of the squared part of that. [default: 10000]",
            "X",
            setting("background_mse_scale"),
        ),
    ] = None
    no_enforce_background: Annotated[
        bool, flag(METHOD, "--no_enforce_background", "Do not put the photo's own pixels back outside the mask.")
    ] = False
    match_release: Annotated[
        bool, flag(METHOD, "--match-release", "Do as the released code where it differs from the paper.")
    ] = False

    @property
    def note(self) -> str | None:
        """What to say about flags that do nothing, if there are some."""
        if self.background_preservation_loss or (self.lpips_sim_lambda, self.l2_sim_lambda) == (None, None):
            return None
        return "note: --lpips_sim_lambda and --l2_sim_lambda do nothing without --background_preservation_loss"

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "ddim": self.ddim,
            "blend": not self.local_clip_guided_diffusion,
            "enforce_background": not self.no_enforce_background,
            "match_release": self.match_release,
        }
        if self.background_preservation_loss:
            settings["background_lpips_scale"] = first_given(self.lpips_sim_lambda, 1000.0)
            settings["background_mse_scale"] = first_given(self.l2_sim_lambda, 10000.0)
        return settings


@dataclass(frozen=True)
class EditMachineFlags(MachineFlags):
    """With what and on what the edit is made."""

    model_output_size: Annotated[
        int | None, flag(RELEASED, "--model_output_size", "Refuse a --model of another size.", "PIXELS", at_least(1))
    ] = None
    gpu_id: Annotated[
        int | None, flag(RELEASED, "--gpu_id", "As --device cuda:N; without CUDA, the CPU.", "N", at_least(0))
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        flag(
            MACHINE,
            "--gradient-checkpointing",
            "Less memory for --guidance-gradient sample, and more time; by itself where memory is short.",
        ),
    ] = False

    def __post_init__(self) -> None:
        refuse_both(self, ("--device", "--gpu_id"))

    @property
    def request(self) -> ModelRequest:
        return replace(super().request, gradient_checkpointing=self.gradient_checkpointing)
