"""Finetuning: a pipeline and labelled images come in, the pipeline with a trained UNet goes out.

`options` says what decides the result and what does not, `sampling` which images a step sees,
`batches` what it trains on, `training` is the loop; `evaluation`, `previews`, `losses`, `events`
and `card` tell how it went, and `estimate` what it will cost.
"""

ALGO = "finetune-3"
"""Version of what decides a finetuned model, given images, base model and options."""
