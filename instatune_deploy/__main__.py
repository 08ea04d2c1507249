"""`python -m instatune_deploy` is the console script."""

from instatune_deploy.faces.cli import main

if __name__ == "__main__":
    main()
