"""Tells errors of remote reads that may pass from those that stay, and says either in words.

The drivers of object stores need not be installed: their errors are known by status, code or the name of their class.
"""

from __future__ import annotations

import re

from nt_pretrain.data.errors import DataError

MISSING, CHANGED, UNREACHABLE = "missing shard", "changed shard", "unreachable shard"
"""Kinds of :class:`BadInput`."""
_NO_FILE = "there is no such file (404)"
_PASSING = (408, 425, 429)
"""Answers of the 400s that say: try again."""
_BY_CLASS = {
    "NoCredentialsError": "no credentials were found",
    "PartialCredentialsError": "the credentials are not complete",
    "CredentialRetrievalError": "no credentials could be had",
    "DefaultCredentialsError": "no credentials were found",
    "ProfileNotFound": "there is no such profile of credentials",
    "InvalidURL": "this is no valid URL",
    "ParamValidationError": "the store refuses the name",
}
_BY_CODE = {
    "InvalidAccessKeyId": "the store does not know these credentials",
    "SignatureDoesNotMatch": "the store refuses these credentials",
    "ExpiredToken": "the credentials have expired",
    "AccessDenied": "access is denied",
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such file",
}
"""Codes of S3."""
_USER = re.compile(r"//(?:[^/?#]*@|[^/@]*:(?!\d*(?:[/?#]|$))[^@]*@)")
"""User and password; also of those who wrote a / or ? of the password as it is."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_QUERY = re.compile(r"\?[^\s'\"<>=]+=[^\s'\"<>]*")
"""Of a URL whose beginning an error does not show."""
_BROKEN = (DataError, TypeError, AttributeError, NameError, NotImplementedError, AssertionError)
"""Never the network's doing."""


def lasting(error: BaseException) -> tuple[str, str] | None:
    """The kind and the words of an error that no further attempt can mend; None for others."""
    error = _cause(error)
    status, code = _status(error), _code(error)
    if code in _BY_CODE:
        return MISSING, f"{_BY_CODE[code]} ({code})"
    if status == 416 or code == "InvalidRange":
        return CHANGED, "ends before the bytes that are needed; it is not the file that the manifest lists"
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return MISSING, _NO_FILE
    if status in (401, 403) or isinstance(error, PermissionError):
        return MISSING, f"access is denied ({status or 403}); check the credentials in the environment"
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return MISSING, f"the server refuses the request ({in_words(error)})"
    words = _BY_CLASS.get(type(error).__name__)
    return (MISSING, words) if words else None


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    return isinstance(error, Exception) and not isinstance(error, _BROKEN) and lasting(error) is None


def in_words(error: BaseException) -> str:
    error = _cause(error)
    status = _status(error)
    if status is not None:
        return without_secrets(f"{status} {getattr(error, 'message', '')}".strip())
    return without_secrets(str(error)) or type(error).__name__


def shown_url(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment. What is no URL stays as it is."""
    if "://" not in url:
        return url
    return re.split("[?#]", _USER.sub("//", url), maxsplit=1)[0]


def without_secrets(text: str) -> str:
    """The text of an error of a driver, with the URLs in it as they may be shown."""
    return _QUERY.sub("?...", _URL.sub(lambda found: shown_url(found[0]), text))


def _cause(error: BaseException) -> BaseException:
    """fsspec calls a file missing when it could not be asked for at all; the true error is behind that."""
    cause = error.__cause__
    unasked = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and cause is not None and unasked else error


def _status(error: BaseException) -> int | None:
    """The HTTP status, as aiohttp or gcsfs name it. aiohttp's parser errors have a ``code`` that no server sent."""
    value = getattr(error, "code" if type(error).__name__ == "HttpError" else "status", None)
    return value if isinstance(value, int) else None


def _code(error: BaseException) -> str | None:
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None
