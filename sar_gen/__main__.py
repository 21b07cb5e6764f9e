"""``python -m sar_gen``: the command line."""

from sar_gen.cli import main

if __name__ == "__main__":
    main()
