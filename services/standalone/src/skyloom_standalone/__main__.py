"""`python -m skyloom_standalone`."""

from skyloom_standalone.main import main

if __name__ == "__main__":
    main()
