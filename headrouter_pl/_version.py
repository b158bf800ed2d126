from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("headrouter-pl")  # of the git tag that it was built from, see pyproject.toml
except PackageNotFoundError:  # a checkout that nobody has installed
    __version__ = "0+unknown"
