"""`python -m omnikit` is the command `omnikit`."""

from omnikit.cli import main

if __name__ == "__main__":
    main()
