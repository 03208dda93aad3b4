/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What cannot be left out, and nothing else, in one thread: the least that a store of this kind takes of a processor on this machine.
 *
 *   floor put DIR N IMAGE   read an image, digest its pages, compress, encrypt and write those that DIR does not have
 *   floor get DIR N FILE    read, decrypt, decompress, compare with the digest, write
 *   floor verify DIR N      the same without the writing, and digest each page as well
 *   floor mount FROM DIR    show the plain files image and hole of the directory FROM through FUSE
 *
 * Digests, ciphers and sizes are those of the store (fuse_store/repository): GMAC of each page, keyed BLAKE3 of each block of 128 KiB,
 * zstd, AES-256-GCM with a key for each block. There are no locks, no index that others can change, no headers, no threads,
 * no check of what is read from DIR but that of the digests. Not part of the product. Build: peers.py.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 31
#include <blake3.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum { PAGE = 4096, SLOTS = 32, BLOCK = PAGE * SLOTS, TAG = 16, DIGEST = 16, WINDOW = 16 << 20, DIRECT = 8, GATHERED = 32 << 20, LEVEL = -2 };
#define CHECK(what) ((what) ? (void)0 : (perror(#what), exit(1)))

struct block { uint64_t offset; uint32_t stored, pages; uint8_t digest[DIGEST]; };
struct known { uint64_t high, low; uint32_t block, slot; };
struct extent { uint32_t page, block, slot; };
/* A growing array of rows, read from a file and appended to it. */
struct table { uint8_t *rows; size_t row, count, old, room; };

static const uint8_t KEY[32] = "only a benchmark, no secret her";
static char folder[3000];
static struct table blocks = {.row = sizeof(struct block)}, pages = {.row = sizeof(struct known)}, extents = {.row = sizeof(struct extent)};
static EVP_CIPHER_CTX *gmac, *gcm;
static ZSTD_CCtx *compressor;
static ZSTD_DCtx *decompressor;
static uint8_t content[BLOCK], compressed[2 * BLOCK], stored[2 * BLOCK];

static char *in_folder(const char *name)
{
    static char path[4000];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void *add(struct table *table)
{
    if (table->count == table->room) {
        table->room = table->room ? 2 * table->room : 1 << 16;
        CHECK((table->rows = realloc(table->rows, table->room * table->row)) != NULL);
    }
    return table->rows + table->row * table->count++;
}

static void load(struct table *table, const char *name)
{
    int file = open(in_folder(name), O_RDONLY);
    if (file < 0)
        return;
    struct stat status;
    CHECK(fstat(file, &status) == 0);
    table->old = table->count = table->room = status.st_size / table->row;
    CHECK((table->rows = malloc(status.st_size + 1)) != NULL);
    CHECK(read(file, table->rows, status.st_size) == status.st_size);
    close(file);
}

static void save(struct table *table, const char *name)
{
    int file = open(in_folder(name), O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(file >= 0);
    size_t length = (table->count - table->old) * table->row;
    CHECK((size_t)write(file, table->rows + table->old * table->row, length) == length);
    CHECK(fsync(file) == 0);
    close(file);
}

static void start(void)
{
    static const uint8_t nonce[12];
    compressor = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_compressionLevel, LEVEL);
    decompressor = ZSTD_createDCtx();
    gmac = EVP_CIPHER_CTX_new(), gcm = EVP_CIPHER_CTX_new();
    CHECK(EVP_EncryptInit_ex(gmac, EVP_aes_256_gcm(), NULL, KEY, nonce) == 1);
}

static void page_digest(const uint8_t *page, uint64_t digest[2])
{
    static const uint8_t nonce[12];
    int length;
    EVP_EncryptInit_ex(gmac, NULL, NULL, NULL, nonce);
    EVP_EncryptUpdate(gmac, NULL, &length, page, PAGE);
    EVP_EncryptFinal_ex(gmac, NULL, &length);
    EVP_CIPHER_CTX_ctrl(gmac, EVP_CTRL_GCM_GET_TAG, DIGEST, digest);
}

static void blake3(const uint8_t *bytes, size_t length, uint8_t *digest, size_t size)
{
    blake3_hasher hasher;
    blake3_hasher_init_keyed(&hasher, KEY);
    blake3_hasher_update(&hasher, bytes, length);
    blake3_hasher_finalize(&hasher, digest, size);
}

/* --- put --- */
static uint32_t *slots; /* a hash table of the known pages: number of the row + 1 */
static size_t slots_mask;
static int pack;
static uint64_t pack_end;
static uint32_t filled;
static uint8_t *writing;
static size_t waiting;

static void enter(uint32_t row)
{
    const struct known *known = (struct known *)pages.rows + row;
    size_t at = known->low & slots_mask;
    while (slots[at])
        at = (at + 1) & slots_mask;
    slots[at] = row + 1;
}

static void index_pages(size_t more)
{
    for (slots_mask = 1; slots_mask < 2 * (pages.count + more); slots_mask *= 2)
        ;
    CHECK((slots = calloc(slots_mask, sizeof *slots)) != NULL);
    slots_mask--;
    for (size_t row = 0; row < pages.count; row++)
        enter(row);
}

static const struct known *find(const uint64_t digest[2])
{
    for (size_t at = digest[1] & slots_mask; slots[at]; at = (at + 1) & slots_mask) {
        const struct known *known = (struct known *)pages.rows + slots[at] - 1;
        if (known->high == digest[0] && known->low == digest[1])
            return known;
    }
    return NULL;
}

static void write_out(void)
{
    CHECK(write(pack, writing, waiting) == (ssize_t)waiting);
    waiting = 0;
}

static void close_block(void)
{
    static const uint8_t nonce[12];
    if (!filled)
        return;
    struct block *block = add(&blocks);
    uint8_t key[32];
    int length, last;
    block->pages = filled * PAGE;
    blake3(content, block->pages, block->digest, DIGEST);
    blake3(block->digest, DIGEST, key, sizeof key);
    size_t size = ZSTD_compress2(compressor, compressed, sizeof compressed, content, block->pages);
    CHECK(!ZSTD_isError(size));
    uint8_t *out = writing + waiting;
    EVP_EncryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, nonce);
    EVP_EncryptUpdate(gcm, out, &length, compressed, size);
    EVP_EncryptFinal_ex(gcm, out + length, &last);
    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_GCM_GET_TAG, TAG, out + size);
    block->offset = pack_end, block->stored = size + TAG;
    pack_end += size + TAG, waiting += size + TAG;
    if (waiting > (1 << 20))
        write_out();
    filled = 0;
}

static int is_zero(const uint8_t *page)
{
    const uint64_t *word = (const uint64_t *)page;
    for (int at = 0; at < PAGE / 8; at += 8)
        if (word[at] | word[at + 1] | word[at + 2] | word[at + 3] | word[at + 4] | word[at + 5] | word[at + 6] | word[at + 7])
            return 0;
    return 1;
}

static void put_page(uint32_t number, const uint8_t *page)
{
    uint64_t digest[2];
    page_digest(page, digest);
    const struct known *known = find(digest);
    if (!known) {
        if (filled == SLOTS)
            close_block();
        memcpy(content + filled * PAGE, page, PAGE);
        struct known *new = add(&pages);
        *new = (struct known){digest[0], digest[1], blocks.count, filled++};
        enter(pages.count - 1);
        known = new;
    }
    *(struct extent *)add(&extents) = (struct extent){number, known->block, known->slot};
}

static void put(const char *version, const char *image)
{
    int file = open(image, O_RDONLY);
    CHECK(file >= 0);
    struct stat status;
    CHECK(fstat(file, &status) == 0);
    load(&blocks, "blocks"), load(&pages, "pages");
    index_pages(status.st_size / PAGE);
    pack = open(in_folder("pack"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(pack >= 0);
    pack_end = lseek(pack, 0, SEEK_END);
    writing = malloc(4 << 20);
    uint8_t *window = malloc(WINDOW);
    for (off_t at = 0, end; (at = lseek(file, at, SEEK_DATA)) >= 0;) {
        end = lseek(file, at, SEEK_HOLE);
        for (at &= ~(PAGE - 1); at < end;) {
            ssize_t got = pread(file, window, end - at < WINDOW ? end - at : WINDOW, at);
            CHECK(got > 0);
            memset(window + got, 0, (PAGE - got % PAGE) % PAGE);
            for (ssize_t from = 0; from < got; from += PAGE)
                if (!is_zero(window + from))
                    put_page((at + from) / PAGE, window + from);
            at += got;
        }
    }
    close_block();
    write_out();
    CHECK(fsync(pack) == 0);
    *(struct extent *)add(&extents) = (struct extent){(status.st_size + PAGE - 1) / PAGE, UINT32_MAX, 0};
    save(&blocks, "blocks"), save(&pages, "pages"), save(&extents, version);
}

/* --- get, verify --- */
static int by_block(const void *left, const void *right)
{
    const struct extent *a = left, *b = right;
    return a->block != b->block ? (a->block < b->block ? -1 : 1) : a->slot < b->slot ? -1 : a->slot > b->slot;
}

static void open_block(uint32_t number)
{
    static const uint8_t nonce[12];
    const struct block *block = (struct block *)blocks.rows + number;
    uint8_t key[32], digest[DIGEST];
    int length, last;
    CHECK(pread(pack, stored, block->stored, block->offset) == block->stored);
    blake3(block->digest, DIGEST, key, sizeof key);
    EVP_DecryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, nonce);
    EVP_DecryptUpdate(gcm, compressed, &length, stored, block->stored - TAG);
    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_GCM_SET_TAG, TAG, stored + block->stored - TAG);
    CHECK(EVP_DecryptFinal_ex(gcm, compressed + length, &last) == 1);
    CHECK(ZSTD_decompressDCtx(decompressor, content, BLOCK, compressed, length) == block->pages);
    blake3(content, block->pages, digest, DIGEST);
    CHECK(memcmp(digest, block->digest, DIGEST) == 0);
}

/* Pages of an image that follow each other, up to so many that GATHERED bytes of them are in pieces smaller than DIRECT; how many. */
static size_t part(const struct extent *extent, size_t count)
{
    size_t small = 0, at = 0;
    while (at < count) {
        size_t run = 1;
        while (at + run < count && extent[at + run].page == extent[at].page + run && extent[at + run].block == extent[at].block &&
               extent[at + run].slot == extent[at].slot + run)
            run++;
        small += run < DIRECT ? run : 0;
        at += run;
        if (small * PAGE > GATHERED - BLOCK)
            break;
    }
    return at;
}

static void get(const char *version, const char *target)
{
    load(&blocks, "blocks"), load(&extents, version);
    pack = open(in_folder("pack"), O_RDONLY);
    CHECK(pack >= 0 && extents.count > 0);
    struct extent *all = (struct extent *)extents.rows, *sorted = malloc(extents.count * sizeof *all);
    size_t count = extents.count - 1;
    uint32_t last_page = all[count].page;
    int out = -1;
    if (target) {
        out = open(target, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(out >= 0 && ftruncate(out, (off_t)last_page * PAGE) == 0);
    }
    uint8_t *gathered = target ? malloc(GATHERED) : NULL;
    uint32_t *place = target ? malloc(last_page * sizeof *place) : NULL; /* of a page in gathered, + 1 */
    for (size_t done = 0, length; done < count; done += length) {
        length = target ? part(all + done, count - done) : count - done;
        memcpy(sorted, all + done, length * sizeof *all);
        qsort(sorted, length, sizeof *all, by_block);
        if (target)
            memset(place + all[done].page, 0, (all[done + length - 1].page - all[done].page + 1) * sizeof *place);
        uint32_t used = 0;
        for (size_t at = 0, run; at < length; at += run) {
            if (!at || sorted[at].block != sorted[at - 1].block) {
                open_block(sorted[at].block);
                uint64_t digest[2];
                for (uint32_t page = 0; !target && page < ((struct block *)blocks.rows)[sorted[at].block].pages; page += PAGE)
                    page_digest(content + page, digest);
            }
            for (run = 1; at + run < length && sorted[at + run].block == sorted[at].block &&
                 sorted[at + run].page == sorted[at].page + run && sorted[at + run].slot == sorted[at].slot + run;)
                run++;
            if (!target)
                continue;
            const uint8_t *from = content + sorted[at].slot * PAGE;
            if (run >= DIRECT || (used + run) * (size_t)PAGE > GATHERED) {
                CHECK(pwrite(out, from, run * PAGE, (off_t)sorted[at].page * PAGE) == (ssize_t)(run * PAGE));
            } else {
                memcpy(gathered + used * PAGE, from, run * PAGE);
                for (size_t each = 0; each < run; each++)
                    place[sorted[at].page + each] = ++used;
            }
        }
        for (size_t at = done, run; target && at < done + length; at += run) {
            uint32_t first = all[at].page;
            run = 1;
            if (!place[first])
                continue;
            static uint8_t piece[1 << 20];
            memcpy(piece, gathered + (place[first] - 1) * (size_t)PAGE, PAGE);
            for (; at + run < done + length && all[at + run].page == first + run && place[first + run] && (run + 1) * PAGE <= sizeof piece; run++)
                memcpy(piece + run * PAGE, gathered + (place[first + run] - 1) * (size_t)PAGE, PAGE);
            CHECK(pwrite(out, piece, run * PAGE, (off_t)first * PAGE) == (ssize_t)(run * PAGE));
        }
    }
}

/* --- mount --- */
static const char *const names[] = {"/image", "/hole"};
static struct { int file; off_t size; } shown[2];

static int fs_getattr(const char *path, struct stat *status, struct fuse_file_info *file)
{
    (void)file;
    *status = (struct stat){.st_mode = S_IFDIR | 0500, .st_nlink = 2};
    if (!strcmp(path, "/"))
        return 0;
    int number = !strcmp(path, names[1]);
    if (strcmp(path, names[number]))
        return -ENOENT;
    *status = (struct stat){.st_mode = S_IFREG | 0400, .st_nlink = 1, .st_size = shown[number].size};
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file)
{
    file->fh = !strcmp(path, names[1]);
    return 0;
}

static int fs_read(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)path;
    return pread(shown[file->fh].file, buffer, size, offset);
}

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    (void)connection;
    config->kernel_cache = 1;
    return NULL;
}

int main(int count, char **arguments)
{
    static const struct fuse_operations operations = {.getattr = fs_getattr, .open = fs_open, .read = fs_read, .init = fs_init};
    const char *verb = count > 3 ? arguments[1] : "";
    if (!strcmp(verb, "mount")) {
        snprintf(folder, sizeof folder, "%s", arguments[2]);
        for (int number = 0; number < 2; number++) {
            struct stat status;
            shown[number].file = open(in_folder(names[number]), O_RDONLY);
            CHECK(shown[number].file >= 0 && fstat(shown[number].file, &status) == 0);
            shown[number].size = status.st_size;
        }
        char *options[] = {arguments[0], "-f", arguments[3], NULL};
        return fuse_main(3, options, &operations, NULL);
    }
    snprintf(folder, sizeof folder, "%s", count > 3 ? arguments[2] : "");
    start();
    if (!strcmp(verb, "put") && count == 5)
        put(arguments[3], arguments[4]);
    else if (!strcmp(verb, "get") && count == 5)
        get(arguments[3], arguments[4]);
    else if (!strcmp(verb, "verify") && count == 4)
        get(arguments[3], NULL);
    else
        return fprintf(stderr, "usage: floor put|get DIR N FILE, floor verify DIR N, floor mount FROM DIR\n"), 3;
    return 0;
}
