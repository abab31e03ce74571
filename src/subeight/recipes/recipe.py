"""What a user writes: which linears get which format, by which methods. Strict, and small enough to read."""

import hashlib
import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from subeight.errors import FormatError, RecipeError
from subeight.formats import Format
from subeight.kv.policy import KVPolicy


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'gptq'?`, or nothing where no known word is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _canonical(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(Format.parse(text))
    except FormatError as error:
        raise ValueError(str(error)) from error


def _method(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value, "options": {}}
    if isinstance(value, dict) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return {"name": name, "options": options or {}}
    if isinstance(value, MethodUse):
        return value
    raise ValueError(f"{value!r} is not a method; write its name, or {{name: {{option: value}}}}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MethodUse(_Strict):
    """One method of a recipe with the options that the user gave it."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    def plain(self) -> Any:
        """As it is written in YAML: its name, or its name with its options."""
        return {self.name: self.options} if self.options else self.name


def _policy(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        policy = KVPolicy.parse(text)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return None if policy.is_full else str(policy)


PolicyText = Annotated[str | None, AfterValidator(_policy)]
FormatText = Annotated[str | None, AfterValidator(_canonical)]
Methods = list[Annotated[MethodUse, BeforeValidator(_method)]]
Tap = Literal["sequential", "parallel", "exact"]


class Rule(_Strict):
    """What is different for the linears whose name matches a glob; the rest is as the recipe itself says."""

    match: str = Field(min_length=1)
    weights: FormatText = None
    inputs: FormatText = None
    methods: Methods | None = None
    keep: bool = False

    @model_validator(mode="after")
    def _sayable(self) -> "Rule":
        given = self.model_fields_set - {"match", "keep"}
        if self.keep and given:
            raise ValueError(f"keep: true leaves the linear as it is, so it cannot be given {sorted(given)[0]!r} too")
        if not self.keep and not given:
            raise ValueError("the rule changes nothing; give it weights, inputs, methods or keep: true")
        return self


class Calibration(_Strict):
    """The text that the methods see; a coordinate of its own, not part of the recipe's fingerprint.

    Of a mixture of experts: `per_expert` asks for so many tokens for each expert, out of further sequences of the
    source or of another one (`pool`); `forced` shows every expert all tokens, whatever the router says.
    """

    source: str = "builtin"
    sequences: int = Field(default=32, gt=0)
    length: int = Field(default=512, gt=1)
    seed: int = Field(default=0, ge=0)
    per_expert: int = Field(default=0, ge=0)
    pool: str | None = None
    forced: bool = False

    @model_validator(mode="after")
    def _pooled(self) -> "Calibration":
        if self.pool is not None and not self.per_expert:
            raise ValueError(
                "a pool feeds experts that are short of `per_expert` tokens; give that too, as per_expert: 256"
            )
        return self


class Recipe(_Strict):
    """A recipe as it was written, checked in itself; `resolve` makes a Plan of it for one model.

    `tap` says what the statistics of an InputGroup are taken of: `sequential`, the activations after the groups before
    it were quantized; `parallel`, one tap per block; `exact`, the activations of the baseline itself, in one pass that
    any number of recipes share. `kv` is how keys and values are stored where the checkpoint runs, `unreached` a format
    for experts of a mixture that no calibration token reaches.
    """

    name: str = "unnamed"
    weights: FormatText = None
    inputs: FormatText = None
    methods: Methods = Field(default_factory=lambda: [MethodUse(name="rtn")])
    rules: list[Rule] = Field(default_factory=list)
    kv: PolicyText = None
    tap: Tap = "sequential"
    unreached: FormatText = None
    calibration: Calibration = Field(default_factory=Calibration)

    @classmethod
    def from_dict(cls, content: Any, where: str = "the recipe") -> "Recipe":
        """The recipe that `content` says; RecipeError tells what was given, where, and what is allowed."""
        if not isinstance(content, dict):
            raise RecipeError(
                f"{where} holds {type(content).__name__} where a mapping is expected; begin with `weights: int4:g64`."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            # A misspelt key is the cause of what else is missing, so it is told first.
            first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
            raise RecipeError(_sentence(first, where)) from error

    def to_dict(self) -> dict[str, Any]:
        """As it would be written in YAML; `from_dict` of it is the same recipe."""
        rules = [
            {
                key: [use.plain() for use in rule.methods or []] if key == "methods" else getattr(rule, key)
                for key in Rule.model_fields
                if key in rule.model_fields_set
            }
            for rule in self.rules
        ]
        unreached = {"unreached": self.unreached} if self.unreached is not None else {}
        return {
            "name": self.name,
            "weights": self.weights,
            "inputs": self.inputs,
            "methods": [use.plain() for use in self.methods],
            "rules": rules,
            "kv": self.kv,
            "tap": self.tap,
            **unreached,
            "calibration": self.calibration.model_dump(),
        }

    def to_yaml(self) -> str:
        """The recipe as YAML text, which `parse_recipe` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what the recipe asks for: its name and its calibration are left out."""
        content = self.to_dict()
        del content["name"], content["calibration"]
        return fingerprint_of(content)


def fingerprint_of(content: Any) -> str:
    """16 hex digits of any JSON content, the order of keys left out."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_KEYS: dict[str, type[BaseModel]] = {"rules": Rule, "calibration": Calibration}


def _sentence(error: ErrorDetails, where: str) -> str:
    place = [part for part in error["loc"] if not str(part).startswith("function-")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if error["type"] == "extra_forbidden":
        model = _KEYS.get(str(place[0]), Recipe) if len(place) > 1 else Recipe
        allowed = ", ".join(model.model_fields)
        key = str(place[-1])
        inside = f" in {path.rsplit('.', 1)[0]}" if len(place) > 1 else ""
        hint = did_you_mean(key, model.model_fields)
        return f"{where}{inside} has the unknown key {key!r}; allowed are {allowed}.{hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("value_error", "missing") else f" (given: {error['input']!r})"
    end = "" if message.endswith((".", "?")) else "."
    return f"{where}, {path or 'as a whole'}: {message}{given}{end}"
