"""`python -m sttm_cli` is the command `sttm`."""

from sttm_cli.cli import main

if __name__ == "__main__":
    main()
