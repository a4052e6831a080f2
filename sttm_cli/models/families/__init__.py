"""The model families: one file per `model_type`, named after it, that exports `FAMILY`.

A family of another package is an entry point of group `sttm_cli.families`: its name is the
`model_type`, its value the `Family`. Families are imported on demand and without torch.
"""
