"""`python -m fedcondense`: the command line where its script is not on the path."""

from fedcondense.cli import main

if __name__ == "__main__":  # not in the worker processes of a sweep, which import this module again
    main()
