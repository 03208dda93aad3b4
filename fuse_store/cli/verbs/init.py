# SPDX-License-Identifier: GPL-3.0-or-later
"""``init``: create a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fuse_store.cli import values
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    from fuse_store.repository.keys.keyfile import default_key_file
    from fuse_store.store import Store

    options, location = context.options, context.store_location
    if options.no_encryption and options.key_file:
        raise UsageError("init", "--key-file cannot be combined with --no-encryption.", "Omit one of them.")
    key_file = None if options.no_encryption else context.key_file
    with Store.create(
        location, encryption=not options.no_encryption, key_file=key_file, compression=options.compression, level=options.level,
        page_size=options.page_size, durability=options.durability, unencrypted=context.unencrypted,
    ) as store:  # fmt: skip
        config = store.config
        key = Path(key_file) if key_file else default_key_file(bytes.fromhex(config.id))
        context.done = "The store was created." if options.no_encryption else f"The store was created, with the key file {key}."
    record = {
        "store": location, "id": config.id, "encryption": config.encryption,
        "key_file": None if options.no_encryption else str(key), "page_size": config.page_size,
        "compression": config.compression, "level": config.level, "durability": config.durability,
    }  # fmt: skip
    context.emit(record, "")
    context.remark(f"Created store {config.id[:12]} at {location}.")
    if options.no_encryption:
        context.remark("The store is not encrypted. Anyone with read access to it can read every image.")
    else:
        context.remark(f"Key file: {key}")
        context.remark("Without the key file the data in the store is lost. Keep a copy of it in another place.")
    return 0


VERB = Verb(
    name="init",
    summary="create a store in a new or empty directory or S3 prefix",
    description="The store is encrypted unless --no-encryption is given. The key is written to a separate key file, never to the "
    "store. These settings cannot be changed later.",
    run=run,
    arguments=(
        argument("--no-encryption", action="store_true", help="do not encrypt; data is still verified by checksums"),
        argument(
            "--compression", metavar="zstd|lz4|none", default="zstd", choices=("zstd", "lz4", "none"),
            help="compression of blocks (default: zstd)",
        ),
        argument(
            "--level", type=int, default=-2, metavar="N",
            help="zstd level: -7 (fastest) to -1, or 1 to 19 (smallest) (default: -2)",
        ),
        argument(
            "--page-size", type=values.page_size, default=4096, metavar="SIZE", complete="page size",
            help="unit of deduplication: 4KiB, 16KiB or 64KiB; use the page size of the machines (default: 4KiB)",
        ),
        argument(
            "--durability", default="full", metavar="full|batch|none", choices=("full", "batch", "none"),
            help="when to sync to disk: after each file, once before a version is committed, or never (default: full)",
        ),
    ),
    keys={
        "store": "directory or URL of the store",
        "id": "store id",
        "encryption": "aes-256-gcm or none",
        "key_file": "path of the key file; null without encryption",
        "page_size": "bytes per page",
        "compression": "zstd, lz4 or none",
        "level": "zstd level",
        "durability": "full, batch or none",
    },
    examples=(
        ("fuse-store --store /srv/images init", "create an encrypted store; write the key to ~/.config/fuse-store/keys"),
        ("fuse-store --store /srv/images init --key-file /root/images.key", "write the key to another place"),
    ),
    interrupted="Remove the incomplete store, if there is one, and run it again.",
)  # fmt: skip
