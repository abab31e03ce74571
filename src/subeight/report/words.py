"""How the report says numbers: three digits that matter, units of people, intervals as fine as their value."""

import math

DASH = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """`0.0312`, `17.6`, `1,234`; tiny values as `3.1e-07`."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return _minus(f"{value:,.{_decimals(value, digits)}f}")


def interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """`0.0298 to 0.0327`, to as many decimals as the value has; empty without an interval."""
    if value is None or low is None or high is None:
        return ""
    if 0 < abs(value) < 1e-4:
        return f"{low:.{digits - 1}e} to {high:.{digits - 1}e}"
    decimals = _decimals(value, digits)
    return f"{_minus(f'{low:,.{decimals}f}')} to {_minus(f'{high:,.{decimals}f}')}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A share as `91.2 %`."""
    return DASH if value is None else f"{_minus(f'{100 * value:.{decimals}f}')} %"


def percent_interval(low: float | None, high: float | None, decimals: int = 1) -> str:
    """Both ends of a share's interval as `90.1 to 92.3`, without the sign of percent; empty without an interval."""
    if low is None or high is None:
        return ""
    return f"{_minus(f'{100 * low:.{decimals}f}')} to {_minus(f'{100 * high:.{decimals}f}')}"


def size(count: float | None) -> str:
    """Bytes as `71.3 MB`, in powers of 1000."""
    if count is None:
        return DASH
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1000:
            return f"{significant(count)} {unit}"
        count /= 1000
    return f"{significant(count)} GB"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 linear`, `210 linears`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(text: str, limit: int = 40) -> str:
    """The text, its middle left out when it is longer than a label can be."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def _minus(digits: str) -> str:
    return digits.replace("-", "−")


def _decimals(value: float, digits: int) -> int:
    if value == 0:
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))
