"""How a model is made: pictures from package registries → a data set → networks → a pipeline folder.

Belongs here: everything that happens before a model exists. Does not: anything that a user of a model needs; nothing
in `blended_diffusion` imports this package. `photos.csv` and `words.csv` say what the bundled model is made of.

The way through: `packages` and `prepare_data` make the data set, `pictures` reads it back as training examples,
`losses` is what the networks learn by, `loop` is what all trainings share, `train_unet` and `train_clip` are the
commands for the bundled kind, `train_autoencoder` and `train_text_unet` for a text model, `export` makes the pipeline
folder of either.
"""
