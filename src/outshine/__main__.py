"""`python -m outshine`: what `accelerate launch -m outshine` and `torchrun -m outshine` start."""

from outshine.cli import main

if __name__ == "__main__":
    main()
