"""`python -m llmsim`: the command line, where its script is on no PATH."""

from llmsim.cli import main

if __name__ == "__main__":
    main()
