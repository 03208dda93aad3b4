# SPDX-License-Identifier: GPL-3.0-or-later
"""``init``: make a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import values
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    from fuse_store.repository.aead import default_key_file
    from fuse_store.store import Store

    options, path = context.options, context.store_place
    if options.no_encryption and options.key_file:
        raise UsageError("--key-file", "a store without encryption has no key.", "Leave out one of the two.")
    key_file = None if options.no_encryption else context.key_file
    with Store.create(
        path, encryption=not options.no_encryption, key_file=key_file, compression=options.compression, level=options.level,
        page_size=options.page_size, durability=options.durability,
    ) as store:  # fmt: skip
        config = store.config
        key = Path(key_file) if key_file else default_key_file(bytes.fromhex(config.id))
    record = {
        "store": path, "id": config.id, "encryption": config.encryption,
        "key_file": None if options.no_encryption else str(key), "page_size": config.page_size,
        "compression": config.compression, "level": config.level, "durability": config.durability,
    }  # fmt: skip
    context.emit(record, "")
    context.remark(f"Store {path} was made.")
    if options.no_encryption:
        context.remark("It is not encrypted: whoever can read it there can read every image in it.")
    else:
        context.remark(f"Its key is in {key}.")
        context.remark(
            "Without the key nobody can read the store, you included: keep a copy of that file somewhere else, today."
        )
    return 0


VERB = Verb(
    name="init",
    summary="make a store in a folder, or below a URL, that is empty or not there",
    description="It is encrypted unless you say otherwise; the key is written to a file of its own, never into the store.",
    run=run,
    arguments=(
        argument("--no-encryption", action="store_true", help="store without encryption; checksums remain"),
        argument(
            "--compression", metavar="zstd|lz4|none", default="zstd", choices=("zstd", "lz4", "none"),
            help="of what is stored (default: zstd)",
        ),
        argument(
            "--level", type=int, default=-2, metavar="N",
            help="of zstd: -7 to -1, faster the lower, or 1 to 19, smaller the higher (default: -2)",
        ),
        argument(
            "--page-size", type=values.page_size, default=4096, metavar="SIZE",
            help="what is compared: 4KiB, 16KiB or 64KiB; that of the machines (default: 4KiB)",
        ),
        argument(
            "--durability", default="full", metavar="full|batch|none",
            help="what is forced onto the disk before a version counts as stored (default: full)",
        ),
    ),
    keys={
        "store": "its folder or URL",
        "id": "its id",
        "encryption": "aes-256-gcm or none",
        "key_file": "where its key is; null without encryption",
        "page_size": "in bytes",
        "compression": "zstd, lz4 or none",
        "level": "of zstd",
        "durability": "full, batch or none",
    },
    examples=(
        ("fuse-store --store /srv/images init", "an encrypted store; the key goes below ~/.config/fuse-store/keys"),
        ("fuse-store --store /srv/images init --key-file /root/images.key", "with the key in a place of your choice"),
    ),
    interrupted="Remove what init has begun, if it is there, and run it again.",
)  # fmt: skip
