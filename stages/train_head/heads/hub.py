"""Heads on the Hugging Face Hub.

    head.push_to_hub("user/name")      Head.from_pretrained("user/name")      fetch_head("hf://user/name@revision")

A repository holds the files of `checkpoint`, a model card (`card`) and, where the head was evaluated, metrics.json.
Of a repository nothing else is fetched, and none of these files can run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from huggingface_hub import HfApi, ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from manifests.errors import ModelError, PipelineError
from stages.extract.checkpoint import first_line

if TYPE_CHECKING:
    from stages.train_head.heads.base import Head

FILES: Final = ("README.md", "config.json", "metrics.json", "model.safetensors", "training.json")
"""All that a repository of a head may hold for us; nested files are not among them."""
SCHEME: Final = "hf://"
EMBEDDED: Final = Path(__file__).parent / "tiny"
"""The head that `make demo` trains for the embedded LMM."""


class OnHub(ModelHubMixin):
    """What a `Head` has of huggingface_hub: `save_pretrained`, `push_to_hub`, `from_pretrained`; the files are ours."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a head is made from its files alone, not from keywords
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **download: Any
    ) -> Self:
        """The stored head of a folder, or of a repository user/name of the Hub, on the CPU, in eval mode.

        `Head.from_pretrained` gives whichever head of this program it is, a subclass only its own kind.
        download: force_download, token, cache_dir, local_files_only of huggingface_hub's `snapshot_download`.
        ModelError: it is not there, can not be reached, or is no such head; nothing that a file names is imported.
        """
        from stages.train_head.heads.checkpoint import load_head

        where = str(pretrained_model_name_or_path)
        folder = Path(where) if Path(where).is_dir() else _downloaded(where, revision, **download)
        head = load_head(folder, cast("type[Head]", cls) if hasattr(cls, "name") else None)
        if not isinstance(head, cls):
            raise ModelError(
                f"{where} holds a head {head.name!r}, no {cls.__name__}: load it with Head.from_pretrained"
            )
        return head

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload files and card to user/name, made if missing; -> the commit's address. ModelError: it was refused.

        options: private, token, branch, commit_message, … of huggingface_hub's `ModelHubMixin.push_to_hub`.
        """
        options["model_card_kwargs"] = {"repo": repo_id} | (options.get("model_card_kwargs") or {})
        options.setdefault("delete_patterns", list(FILES))  # metrics.json there may be of other weights
        with hub_errors(repo_id, writing=True):
            return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, *, repo: str | None = None) -> ModelCard:
        """The card from what the head knows of itself. `repo`: user/name, for the commands in it."""
        from stages.train_head.heads.card import model_card

        return model_card(cast("Head", self), repo)

    def _save_pretrained(self, save_directory: Path) -> None:
        from stages.train_head.heads.checkpoint import save_head

        save_head(cast("Head", self), save_directory)


def fetch_head(where: str) -> Path:
    """The folder of a head: `where` itself, "tiny" (the embedded one), or the downloaded files of
    hf://user/name[@revision].

    A bare user/name is never looked for on the Hub: it looks like a path, and a missing folder must not become
    somebody else's head. ModelError: no such folder, or the Hub does not give it.
    """
    if where.startswith(SCHEME):
        repo, _, revision = where.removeprefix(SCHEME).partition("@")
        return _downloaded(repo, revision or None)
    if where == "tiny":
        if Path(where).is_dir():
            raise ModelError("tiny is the embedded head, and a folder here: rename the folder, or give its whole path")
        return EMBEDDED
    if not Path(where).is_dir():
        raise ModelError(f"no head in {where}: there is no such folder; a head of the Hub is {SCHEME}user/name")
    return Path(where)


def upload(folder: Path, repo: str, *, private: bool | None = None) -> str:
    """Upload a head's files to user/name, made if missing, in one commit; -> its address. ModelError: refused.

    Those of an earlier head that this one has not (metrics.json) are deleted in the same commit.
    """
    with hub_errors(repo, writing=True):
        api = HfApi()
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        names = list(FILES)
        done = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names, delete_patterns=names)
        return str(done.commit_url)


def _downloaded(repo: str, revision: str | None, **options: Any) -> Path:
    with hub_errors(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES), **options))
    if not (folder / "config.json").is_file():
        raise ModelError(f"{SCHEME}{repo} holds no head: config.json is missing; name a repository of `push-head`")
    return folder


@contextmanager
def hub_errors(repo: str, revision: str | None = None, *, writing: bool = False) -> Iterator[None]:
    """Whatever huggingface_hub and the network raise becomes a ModelError of one line with the cure."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # huggingface_hub raises its own, its HTTP library's and OSErrors
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # a full disk
        raise ModelError(f"{SCHEME}{repo}: {_reason(error, repo, revision, writing)}") from None


def _reason(error: Exception, repo: str, revision: str | None, writing: bool) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, HFValidationError):
        return "this is no name of a repository; give user/name"
    if isinstance(error, GatedRepoError):
        return f"it is gated: ask for access at https://huggingface.co/{repo}, then run `hf auth login` as that user"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}: leave it out, or name a branch, a tag or a commit"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return "there is no such repository, or it is private: check the name, or run `hf auth login` as its owner"
    if status in (401, 403):
        return "the Hub does not let you: run `hf auth login` with a token that may write there"
    if isinstance(error, HfHubHTTPError) and status is not None:
        return f"the Hub answered {status} ({error.server_message or first_line(error)}); try again later"
    if isinstance(error, EntryNotFoundError | OfflineModeIsEnabled) or "Connect" in type(error).__name__:
        what = "the Hub is not reachable" if writing else "it is neither in the Hugging Face cache nor reachable"
        cure = "keep the files with `push-head --dry-run --out DIR`, copy DIR there and run `hf upload {0} DIR`"
        if not writing:
            cure = "run `hf download {0} --local-dir DIR` there, copy DIR here and give it instead"
        return f"{what} ({type(error).__name__}); from a machine with network: {cure.format(repo)}"
    return " ".join(f"{first_line(error)}; check the network and try again".split())
