"""Files behind URLs: http, https, s3, gs, hf and whatever else fsspec reads.

A request that fails is made again after a growing, jittered pause, or as late as the server asks by Retry-After, and
goes on at the byte where the last one ended. A command that has only begun gives up early and says that it waits. What
waiting cannot mend (no such file, no access, no library for the protocol) is an InputError at once.
"""

from __future__ import annotations

import os
import random
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import InputError, RunError
from ..terminal import printable, say
from .dataset import Dataset
from .file_names import is_system_file

PIECE = 16 << 20  # bytes of one request: the time to its first byte is small beside it
TRIES = 8  # failures in a row until it is given up: with these pauses after a minute or more
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask for
LARGEST_FILE = 1 << 30  # that is no shard
HEADWAY = 1 << 16  # bytes between two failures that count as such
STALL_SECONDS = 60.0  # without a byte: the connection counts as broken
START_TRIES, START_STALL_SECONDS = 4, 8.0  # while somebody waits for a command to begin


def open_dataset(place: str) -> Dataset:
    """The dataset in a folder, or below a URL. Raises InputError where there is none, or none that can be read."""
    place = place.removeprefix("file://")
    if "://" not in place:
        return Dataset.open(place)
    return Dataset.parse(Remote(place, at_start=True).read("dataset.json"), place)


class Remote:
    """The files below a URL. `stop`, once set, ends pauses with CancelledError.

    `at_start`: nothing has begun yet, so a store that is down is told of, and soon given up.
    """

    def __init__(self, url: str, at_start: bool = False) -> None:
        import fsspec.core  # a third of what a decoding process imports, and only needed here

        self.url, self.stop, self._at_start = url.rstrip("/"), threading.Event(), at_start
        try:
            options = (
                _http_options(START_STALL_SECONDS if at_start else STALL_SECONDS)
                if url.startswith(("http://", "https://"))
                else {}
            )
            self._files, self._root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url} cannot be opened: {error}") from None

    def tars(self) -> list[str]:
        """Names of all tars below the URL, sorted. Raises InputError where the store cannot list them."""
        try:
            found = self._files.find(self._root)
        except Exception as error:
            raise InputError(f"{self.url} cannot be listed ({error}); give a brace pattern of tars") from None
        names = (name.removeprefix(self._root).lstrip("/") for name in found if name.endswith(".tar"))
        return sorted(name for name in names if not is_system_file(name))

    def read(self, name: str) -> bytes:
        """A file that is no shard. Raises InputError for one without end."""
        content = bytearray()
        for piece in self.pieces(name):
            content += piece
            if len(content) > LARGEST_FILE:
                raise InputError(f"{self.url}/{name} has more than {LARGEST_FILE >> 20} MB: that is no {name}")
        return bytes(content)

    def pieces(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """The bytes of a file in order; `size` of them where it is known, so that a short answer is a failure."""
        done = failures = failed_at = 0
        block = PIECE
        while size is None or done < size:
            try:
                with self._files.open(f"{self._root}/{name}", "rb", block_size=block, cache_type="none") as file:
                    if block:
                        file.seek(done)
                    skip = 0 if block else done
                    while size is None or done < size:
                        most = min(PIECE, skip or PIECE, PIECE if size is None else size - done + skip)
                        data = file.read(most)
                        if len(data) > most:
                            raise EOFError(f"{len(data)} bytes came where {most} were asked for")
                        if not data and size is None:
                            return
                        if not data:
                            raise EOFError(f"it ended at byte {done} of {size}")
                        if skip:
                            skip -= len(data)
                            continue
                        done += len(data)
                        if done - failed_at >= HEADWAY or done == size:
                            failures = 0  # less is no sign that it will come to an end
                        yield data
                        if block and size is not None and len(data) < most:
                            raise EOFError(f"{len(data)} bytes came where {most} were asked for")
            except Exception as error:
                failures, failed_at = failures + 1, done
                if isinstance(error, ValueError):
                    block = 0  # a server that knows no ranges: read from the start again and skip what is there
                self._pause(f"{self.url}/{name}", error, failures)

    def _pause(self, url: str, error: Exception, failures: int) -> None:
        """Wait after a failure. Raises InputError or RunError where trying again is of no use."""
        cause = error.__cause__ or error
        status = getattr(cause, "status", None)  # fsspec says "not found" for every failure of an http server
        gone = status in (404, 410) if url.startswith("http") else isinstance(error, FileNotFoundError)
        denied = isinstance(error, PermissionError) or (isinstance(status, int) and 400 <= status < 500)
        if why := _mistrust(error):
            raise InputError(
                f"{url} cannot be read: {why}; SSL_CERT_FILE names a file of certificates to trust"
            ) from None
        if gone or isinstance(error, ImportError) or (denied and status not in (408, 425, 429)):
            why = "there is no such file" if gone else "access is denied" if denied else str(error)
            raise InputError(f"{url} cannot be read: {why}; check data.path and the store's credentials") from None
        why = " ".join(f"{type(cause).__name__} {cause}".split())
        if failures >= (START_TRIES if self._at_start else TRIES):
            raise RunError(f"{url} cannot be read, tried {failures} times ({why}): is the store up?") from None
        if self._at_start and failures == 1:
            say(printable(f"{url} cannot be read ({why}): trying again"), sys.stderr)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
        pause = max(pause, min(LONGEST_PAUSE if self._at_start else LONGEST_RETRY_AFTER, _retry_after(cause)))
        if self.stop.wait(pause):
            raise CancelledError


def _retry_after(error: BaseException) -> float:
    """Seconds that a server asks to wait by the header of this name, which has them or a date; 0 without it."""
    text = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
    with suppress(ValueError, TypeError):
        return float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return 0.0


def _mistrust(error: BaseException | None) -> str:
    """What is wrong with the server's certificate; empty where that is not the trouble."""
    while error is not None:
        found = getattr(error, "certificate_error", error)  # aiohttp's
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({found.verify_message})"
        error = error.__cause__ or error.__context__
    return ""


def _http_options(stall_seconds: float) -> dict[str, Any]:
    """A limit on silence in place of aiohttp's limit of five minutes on a whole request; the proxies of the environment
    (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), as other programs use them. Certificates are OpenSSL's, whose SSL_CERT_FILE is
    what REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE are to others.
    """
    given = next(filter(None, map(os.environ.get, ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))), None)
    if given and os.path.isfile(given):  # noqa: PTH113
        os.environ["SSL_CERT_FILE"] = given  # which aiohttp reads once, when it is imported
    from fsspec.implementations import http

    timeout = http.aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
