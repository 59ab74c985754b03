"""Requirements that only single features have; see requirements-optional.txt."""

from importlib.util import find_spec

from utils.process.errors import UserError


def require(flag: str, *modules: str) -> None:
    """Raise UserError, which names `flag`, unless these modules are installed; imports none."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UserError(
            f"{flag}: needs {', '.join(missing)}; pip install -r requirements-optional.txt"
        )
