"""Secrets of keys: their form, and the hash that is stored instead."""

from __future__ import annotations

import hashlib

import pytest

from llm_service.administration.secrets import hash_secret, looks_like_secret, new_secret


def test_a_new_secret_is_recognised_and_no_other_is_like_it() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(map(looks_like_secret, secrets))


@pytest.mark.parametrize(
    "text", ["", "sk-tr-", "sk-" + "a" * 48, "sk-tr-" + "a" * 42, "sk-tr-" + "a" * 42 + "ä", " sk-tr-" + "a" * 43]
)
def test_what_is_not_of_the_form_is_no_secret(text: str) -> None:
    assert not looks_like_secret(text)


def test_a_hash_is_sha256_of_whatever_was_sent() -> None:
    assert hash_secret("sk-tr-x") == hashlib.sha256(b"sk-tr-x").digest()
    assert len(hash_secret("\ud800")) == 32  # broken UTF-8 has a hash too, so such a key is unknown and causes no error
