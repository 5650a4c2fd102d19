"""What the scripts that read texts say of umT5 in float8; imports no torch, so that `--help` stays quick."""

FP8_T5_HELP = ("hold umT5's linears as float8: 6.4 GiB instead of 10.6, for cards that have no room; the texts differ "
               "a little (docs/performance.md) and caches remember it")
FP8_T5_DIFFERS = "with a scale for every 64 weights; the embedding and the arithmetic keep --t5_dtype"
