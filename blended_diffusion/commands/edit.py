"""`blended-diffusion edit`: one region, several candidates."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from blended_diffusion.commands.edit_flags import (
    EditMachineFlags,
    EditMaskFlags,
    EditMethodFlags,
    EditOutputFlags,
    RankingFlags,
    VariantFlags,
    WindowFlags,
    WordFlags,
)
from blended_diffusion.commands.flags import FilmFlags, InitImage, Quiet
from blended_diffusion.commands.groups import INPUT, METHOD, OUTPUT, flag, with_groups
from blended_diffusion.commands.masking import keep
from blended_diffusion.commands.parsers import first_given, one_of, strengths_with_commas
from blended_diffusion.commands.running import (
    find_team,
    hint_at_words,
    load_in_all,
    make_all,
    note_another_machine,
    show,
)
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.presets import PRESETS, preset_settings
from blended_diffusion.painters.settings import EditSettings


if TYPE_CHECKING:
    from blended_diffusion.models import Model


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


@with_groups
def edit_command(
    prompt: Annotated[
        list[str],
        flag(
            INPUT,
            "--prompt -p",
            "What the masked region should show. Repeated, each has a folder of its own, and all are on prompts.png.",
            "WORDS",
        ),
    ],
    init_image: InitImage,
    mask: EditMaskFlags,
    preset: Annotated[
        str | None,
        flag(
            METHOD,
            "--preset",
            "How much time to take: fast two fifths and balanced half of the model's steps, best (the default) all;"
            " release: the released editor's settings. Other flags come before it.",
            "|".join(PRESETS),
            one_of(*PRESETS),
        ),
    ] = None,
    *,
    method: EditMethodFlags,
    ranking: RankingFlags,
    window: WindowFlags,
    words: WordFlags,
    variant: VariantFlags,
    output: EditOutputFlags,
    films: FilmFlags,
    export_assets: Annotated[
        bool, flag(OUTPUT, "--export_assets", "Write what the model saw and painted to assets/.")
    ] = False,
    machine: EditMachineFlags,
    quiet: Quiet = False,
) -> None:
    if variant.note is not None:
        show(variant.note)
    if len(prompt) > 1 and method.strengths is not None:
        raise ValueError(f"--strengths {method.strengths} is for one prompt, and there are {len(prompt)}; give one.")

    # what is wrong with the files is said before torch is waited for
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = mask.read(photo) if mask.sources and not mask.needs_network else None
    paint = mask.read_scribble(photo)

    from blended_diffusion import machine as machines
    from blended_diffusion.editing.editor import Editor, FolderEditor
    from blended_diffusion.editing.results import find_run
    from blended_diffusion.painters.choice import painter_for

    team = find_team(machine.device, machine.gpu_id)
    earlier = find_run(output.folder, "--output_path") if output.resume else None
    asked = machine.device if machine.gpu_id is None else machines.released_device(machine.gpu_id)
    device = machines.find_device(asked, "--device")
    machines.be_reproducible(None if earlier is None else earlier.made_with.threads)
    if mask.needs_network:
        region = mask.read(photo, device)
    dtype = machine.dtype if machine.dtype is not None or earlier is None else earlier.made_with.dtype
    request = replace(machine.request, clip="none") if ranking.ranking == "none" else machine.request
    model = load_in_all(team, request, machines.find_dtype(dtype, "--dtype"), machine.device, device)
    refuse_another_size(model, machine.model_output_size)
    hint_at_words(model, " ".join(prompt))
    settings = EditSettings(
        prompt=prompt[0],
        invert_mask=mask.invert_mask and mask.is_file,
        mask_is_change_map=mask.mask_is_change_map,
        feather=mask.feather,
        **method.settings,
        **ranking.settings,
        **window.settings,
        **words.settings,
        **variant.settings,
    )
    settings = with_preset(settings, method, preset, painter_for(model).default_num_inference_steps)
    made_with = MadeWith.on(device, model.dtype)
    if earlier is not None:
        note_another_machine(earlier.made_with, made_with)
    editor = FolderEditor(
        model,
        output.folder,
        made_with,
        seed=output.seed,
        num_images=output.total(machine.batch_size),
        batch_size=machine.batch_size,
        resume=output.resume,
        stem=output.stem,
        film=films.film,
        strip=films.strip,
        assets=export_assets,
        make=partial(make_all, quiet=quiet),
        argument="--output_path",
        team=team,
    )
    if paint is not None:
        from blended_diffusion.applications.scribble import start_from, with_strength

        photo, region = start_from(editor, photo, paint, argument=f"--scribble {mask.scribble!r}")
        settings = with_strength(settings)
    if region is not None:
        Editor(model).prepare(photo, region, settings, "")  # what the model refuses is said before a file is written
        region = keep(region, photo, output.folder / "mask.png", "--output_path")
    if len(prompt) > 1:
        from blended_diffusion.applications.prompts import over_prompts, sheet_of_prompts
        from blended_diffusion.pictures import gallery

        by_prompt = over_prompts(editor, photo, region, settings, prompt)
        sheet = sheet_of_prompts(photo, region, by_prompt, window.context)
        gallery.write_png(sheet, output.folder / "prompts.png", photo.icc_profile)
        return
    if method.strengths is None:
        editor.edit(photo, region, settings)
        return
    from blended_diffusion.applications.strengths import over_strengths, strip_of_strengths
    from blended_diffusion.pictures import gallery

    edits = over_strengths(editor, photo, region, settings, strengths_with_commas(method.strengths))
    sheet = strip_of_strengths(photo, region, edits, prompt[0], window.context)
    gallery.write_png(sheet, output.folder / "strengths.png", photo.icc_profile)


def refuse_another_size(model: "Model", size: int | None) -> None:
    """Raises a `ValueError` if the model's pictures are not of `--model_output_size`."""
    if size not in (None, model.size):
        raise ValueError(
            f"--model_output_size {size}: --model {model.name!r} makes pictures of {model.size}×{model.size}; give"
            f" --model one of {size} pixels, made by `blended-diffusion convert` from the published checkpoint of that"
            " size."
        )


def with_preset(
    settings: EditSettings, method: EditMethodFlags, preset: str | None, default_num_inference_steps: int
) -> EditSettings:
    """The settings with what a preset says of those that no flag has decided, and `--skip_timesteps` taken off.

    Raises:
        ValueError: `--skip_timesteps` leaves no step.
    """
    decided = {} if preset is None else preset_settings(preset, default_num_inference_steps)
    steps = first_given(settings.num_inference_steps, decided.get("num_inference_steps"))
    strength = method.strength_of(first_given(steps, default_num_inference_steps))
    settings = replace(settings, num_inference_steps=steps, strength=strength)
    left_out = [name for name in decided if getattr(settings, name) is None or name == "match_release"]
    return replace(settings, **{name: decided[name] for name in left_out})
