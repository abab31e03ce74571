"""The exceptions of Subeight, and the exit status that the command line gives each.

SubeightError                1  the answer is no, or something failed
├── InputError               2  bad input: what was given, what is allowed, what to do, in one sentence
│   ├── FormatError             a number format that cannot be, or does not fit the tensor
│   ├── RecipeError             a recipe or plan that cannot be carried out
│   ├── ModelError              a model that is missing, damaged or of an unknown shape
│   ├── TextError               calibration or evaluation text that cannot be used
│   ├── RecordError             a record that cannot be read or compared
│   ├── OutputError             an output directory that holds something else, or no disk space
│   └── KernelError             a format, shape or device that a kernel does not serve
├── ParityError              1  what was written does not compute what was measured
└── UndecidedError           3  the data do not suffice to decide
"""


class SubeightError(Exception):
    """Anything that Subeight raises on purpose; `exit_status` is what the command line returns."""

    exit_status = 1


class InputError(SubeightError):
    exit_status = 2


class FormatError(InputError):
    pass


class RecipeError(InputError):
    pass


class ModelError(InputError):
    pass


class TextError(InputError):
    pass


class RecordError(InputError):
    pass


class OutputError(InputError):
    pass


class KernelError(InputError):
    pass


class ParityError(SubeightError):
    pass


class UndecidedError(SubeightError):
    exit_status = 3
