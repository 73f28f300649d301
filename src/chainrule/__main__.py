"""`python -m chainrule`: the command without its script."""

from chainrule.cli import main

if __name__ == "__main__":
    main()
