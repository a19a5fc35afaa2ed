"""`blended-diffusion edit`: one region, several candidates."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from blended_diffusion.commands.flags import (
    INPUT,
    MACHINE,
    METHOD,
    OUTPUT,
    RELEASED,
    BatchSize,
    ClickModel,
    ClipScale,
    Context,
    Detail,
    Device,
    Dtype,
    Feather,
    Grow,
    InitImage,
    InvertMask,
    MaskAlpha,
    MaskBox,
    MaskClick,
    MaskDifference,
    MaskFile,
    MaskPolygon,
    MaskPrompt,
    MaskPromptModel,
    MaskThreshold,
    ModelName,
    NegativePrompt,
    NoMatchGrain,
    OutputPath,
    Quiet,
    Resume,
    Seed,
    Steps,
    Strength,
    Strip,
    Vid,
    VidFormat,
    count,
    either,
    flag,
    number,
    one_of,
    scale,
    shares,
    whole_number,
)
from blended_diffusion.commands.masking import MaskFlags, keep
from blended_diffusion.commands.running import find_team, hint_at_words, load_in_all, make_all, show
from blended_diffusion.demo import KNOWN_WORDS
from blended_diffusion.editing.made_with import MadeWith
from blended_diffusion.editing.presets import PRESETS, preset_settings
from blended_diffusion.painters.settings import EditSettings


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


def split_labels(text: str) -> list[str]:
    return [label.strip() for label in text.split(",") if label.strip()]


def growth(text: str) -> float | str:
    return text if text == "auto" else number(lambda value: 0 <= value <= 1, "a number from 0 to 1, or auto")(text)


def edit(
    prompt: Annotated[str, flag(INPUT, "--prompt -p", "What the masked region should show.", "WORDS")],
    init_image: InitImage,
    mask: MaskFile = None,
    mask_alpha: MaskAlpha = None,
    mask_difference: MaskDifference = None,
    box: MaskBox = None,
    polygon: MaskPolygon = None,
    click: MaskClick = None,
    mask_prompt: MaskPrompt = None,
    mask_threshold: MaskThreshold = None,
    grow: Grow = 0.0,
    feather: Feather = None,
    invert_mask: InvertMask = False,
    scribble: Annotated[
        str | None,
        flag(INPUT, "--scribble", "A copy of the photo, painted on: edit the paint into what the words say.", "FILE"),
    ] = None,
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
    vid: Vid = False,
    vid_format: VidFormat = "mp4",
    strip: Strip = None,
    export_assets: Annotated[
        bool, flag(OUTPUT, "--export_assets", "Write what the model saw and painted to assets/.")
    ] = False,
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
    num_inference_steps: Steps = None,
    strength: Strength = None,
    strengths: Annotated[
        str | None,
        flag(METHOD, "--strengths", "Edit at each of these strengths, and write a strip of them.", "X,X,…"),
    ] = None,
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
    candidate_labels: Annotated[
        str | None,
        flag(
            METHOD,
            "--candidate-labels",
            "Other things that a result could be taken for, with commas between: ranked is by what sets it apart from"
            " them.",
            "WORDS,…",
        ),
    ] = None,
    context: Context = EditSettings.context,
    detail: Detail = EditSettings.detail,
    no_match_grain: NoMatchGrain = False,
    initial_mask_growth: Annotated[
        Any,
        flag(
            METHOD,
            "--initial-mask-growth",
            "How far the first step's mask reaches past the wanted one, as a share of the window's width; it shrinks"
            " over the steps. auto: until a small mask fills three tenths of the window. [default: 0]",
            "X|auto",
            growth,
        ),
    ] = EditSettings.initial_mask_growth,
    prompt_templates: Annotated[
        bool, flag(METHOD, "--prompt-templates", "Average the prompt over several phrasings of it; give a bare name.")
    ] = False,
    typographic_defence: Annotated[
        float,
        flag(METHOD, "--typographic-defence", "Weight against looking like the written word; 4 is much.", "X", scale),
    ] = EditSettings.typographic_defence,
    object_scale: Annotated[
        float,
        flag(
            METHOD,
            "--object-scale",
            "Weight, in the order, against objects too small or too big for the mask; 0.5 is much. Give a bare name.",
            "X",
            scale,
        ),
    ] = EditSettings.object_scale,
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
    mask_prompt_model: MaskPromptModel = None,
    click_model: ClickModel = None,
    model: ModelName = "bundled",
    batch_size: BatchSize = 4,
    device: Device = None,
    dtype: Dtype = None,
    gradient_checkpointing: Annotated[
        bool,
        flag(
            MACHINE,
            "--gradient-checkpointing",
            "Less memory for --guidance-gradient sample, and more time; by itself where memory is short.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    steps = either(**{"--num-inference-steps": num_inference_steps, "--timestep_respacing": timestep_respacing})
    either(**{"--strength": strength, "--skip_timesteps": skip_timesteps})
    either(**{"--strength": strength, "--strengths": strengths})
    either(**{"--strengths": strengths, "--skip_timesteps": skip_timesteps})
    several = None if strengths is None else shares(strengths, "--strengths")
    clip_scale = either(
        **{"--clip-guidance-scale": clip_guidance_scale, "--clip_guidance_lambda": clip_guidance_lambda}
    )
    range_scale = either(**{"--range-guidance-scale": range_guidance_scale, "--range_lambda": range_lambda})
    copies = either(**{"--num-augmentations": num_augmentations, "--aug_num": aug_num})
    either(**{"--num-images": num_images, "--iterations_num": iterations_num})
    total = num_images or (4 if iterations_num is None else iterations_num * batch_size)
    either(**{"--device": device, "--gpu_id": gpu_id})
    stem = stem_of(output_file)
    wanted = MaskFlags(
        mask=mask,
        mask_alpha=mask_alpha,
        mask_difference=mask_difference,
        box=box,
        polygon=polygon,
        click=click,
        mask_prompt=mask_prompt,
        mask_threshold=mask_threshold,
        mask_prompt_model=mask_prompt_model,
        click_model=click_model,
        grow=grow,
        invert_mask=invert_mask,
    )
    if scribble is not None and wanted.sources:
        raise ValueError(f"{wanted.sources[0]} and --scribble both say where to edit; give one of them.")
    if not background_preservation_loss and (lpips_sim_lambda, l2_sim_lambda) != (None, None):
        show("note: --lpips_sim_lambda and --l2_sim_lambda do nothing without --background_preservation_loss")

    if feather is not None and scribble is None and not wanted.sources:
        raise ValueError("--feather needs a --mask, or another flag that says where to edit, such as --box.")

    # what is wrong with the files is said before torch is waited for
    from blended_diffusion.pictures import inputs

    photo = inputs.read_photo(init_image, "--init_image")
    region = None if wanted.needs_network else wanted.read(photo)
    paint = None if scribble is None else inputs.read_photo(scribble, "--scribble", photo.image.size)

    from blended_diffusion import machine
    from blended_diffusion.editing.editor import Editor, FolderEditor
    from blended_diffusion.editing.results import find_run

    team = find_team(device, gpu_id)
    folder = Path(output_path)
    earlier = find_run(folder, "--output_path") if resume else None
    place = machine.find_device(machine.released_device(gpu_id) if gpu_id is not None else device, "--device")
    machine.be_reproducible(None if earlier is None else earlier.made_with.threads)
    if wanted.needs_network:
        region = wanted.read(photo, place)
    if dtype is None and earlier is not None:
        dtype = earlier.made_with.dtype
    loaded = load_in_all(team, model, machine.find_dtype(dtype, "--dtype"), device, place, gradient_checkpointing)
    if model_output_size not in (None, loaded.size):
        raise ValueError(
            f"--model_output_size {model_output_size}: --model {loaded.name!r} makes pictures of"
            f" {loaded.size}×{loaded.size}; give --model one of {model_output_size} pixels, made by `blended-diffusion"
            " convert` from the published checkpoint of that size."
        )
    hint_at_words(loaded, prompt)
    asked = {} if preset is None else preset_settings(preset, loaded.pipe.config.default_num_inference_steps)
    steps = asked.get("num_inference_steps") if steps is None else steps
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
        invert_mask=invert_mask and wanted.is_file,
        ranking=ranking,
        candidate_labels=None if candidate_labels is None else split_labels(candidate_labels),
        context=context,
        feather=feather,
        detail=detail,
        match_grain=not no_match_grain,
        initial_mask_growth=None if initial_mask_growth == "auto" else initial_mask_growth,
        prompt_templates=prompt_templates,
        typographic_defence=typographic_defence,
        object_scale=object_scale,
    )
    left_out = [name for name in asked if getattr(settings, name) is None or name == "match_release"]
    settings = replace(settings, **{name: asked[name] for name in left_out})
    if background_preservation_loss:
        settings = replace(
            settings,
            background_lpips_scale=1000.0 if lpips_sim_lambda is None else lpips_sim_lambda,
            background_mse_scale=10000.0 if l2_sim_lambda is None else l2_sim_lambda,
        )
    made_with = MadeWith.on(place, loaded.pipe.unet.dtype)
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
        strip=strip,
        assets=export_assets,
        make=partial(make_all, quiet=quiet),
        argument="--output_path",
        team=team,
    )
    if paint is not None:
        from blended_diffusion.applications.scribble import start_from, with_strength

        photo, region = start_from(editor, photo, paint, argument=f"--scribble {scribble!r}")
        settings = with_strength(settings)
    if region is not None:
        Editor(loaded).prepare(photo, region, settings, "")  # what the model refuses is said before a file is written
        region = keep(region, photo, folder / "mask.png", "--output_path")
    if several is None:
        editor.edit(photo, region, settings)
        return
    from blended_diffusion.applications.strengths import over_strengths, strip_of_strengths
    from blended_diffusion.pictures import gallery

    edits = over_strengths(editor, photo, region, settings, several)
    sheet = strip_of_strengths(photo, region, edits, prompt, context)
    gallery.write_png(sheet, folder / "strengths.png", photo.icc_profile)
