"""One file per `model_type`, named after it, that exports `FAMILY`; see `Family` for the fields.

A family outside of this package is an entry point of group `sttm_cli.families`: its name is the
`model_type`, its value the `Family`. Imported only when asked for, and without torch.
"""
