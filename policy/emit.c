/* SPDX-License-Identifier: Apache-2.0 */

/* Lays a ruleset out.  Classes: a sweep over each family's address space keeps a
 * bitmap of the sets that the current address is in; addresses with the same
 * bitmap are one class.  A set is then a column of these bitmaps. */

#include "policy/compile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the blob is little-endian"
#endif

#define MAX_CLASSES 65536

/* An address from which on a set is entered or left. */
struct edge {
    moat_u128 at;
    uint32_t set;
};

struct interval {
    moat_u128 start;
    uint32_t class;
};

struct classes {
    uint32_t words;   /* of one bitmap: by set */
    uint64_t *bitmap; /* by class */
    uint32_t n, cap;
    uint32_t *bucket, n_buckets; /* class + 1 */
    struct {
        struct interval *v;
        uint32_t n;
    } f[N_RANGE_FAMILIES];
};

static int by_at(const void *a_, const void *b_)
{
    const struct edge *a = a_, *b = b_;
    return a->at < b->at ? -1 : a->at > b->at;
}

static uint64_t bitmap_hash(const struct classes *cs, const uint64_t *bits)
{
    return XXH3_64bits(bits, cs->words * sizeof *bits);
}

static bool classes_grow(struct classes *cs)
{
    if (cs->n < cs->cap)
        return true;
    uint32_t cap = cs->cap ? cs->cap * 2 : 16;
    uint64_t *bitmap = realloc(cs->bitmap, (size_t)cap * cs->words * sizeof *bitmap);
    if (!bitmap)
        return false;
    cs->bitmap = bitmap;
    uint32_t *bucket = calloc(cap * 2, sizeof *bucket);
    if (!bucket)
        return false;
    free(cs->bucket);
    cs->bucket = bucket;
    cs->n_buckets = cap * 2;
    cs->cap = cap;
    for (uint32_t i = 0; i < cs->n; i++) {
        uint32_t b = (uint32_t)bitmap_hash(cs, cs->bitmap + (size_t)i * cs->words);
        while (bucket[b &= cs->n_buckets - 1])
            b++;
        bucket[b] = i + 1;
    }
    return true;
}

/* The class with this bitmap, made if need be.  0, -ENOMEM, -E2BIG. */
static int class_of(struct classes *cs, const uint64_t *bits, uint32_t *out)
{
    if (!classes_grow(cs))
        return -ENOMEM;
    uint32_t b = (uint32_t)bitmap_hash(cs, bits);
    for (; cs->bucket[b &= cs->n_buckets - 1]; b++) {
        uint32_t i = cs->bucket[b] - 1;
        if (!memcmp(cs->bitmap + (size_t)i * cs->words, bits, cs->words * sizeof *bits)) {
            *out = i;
            return 0;
        }
    }
    if (cs->n >= MAX_CLASSES ||
        (size_t)cs->n * cs->words * sizeof *bits > 4 * (size_t)MOAT_RULESET_MAX_SIZE)
        return -E2BIG; /* the sets alone would not fit by far */
    memcpy(cs->bitmap + (size_t)cs->n * cs->words, bits, cs->words * sizeof *bits);
    cs->bucket[b] = cs->n + 1;
    *out = cs->n++;
    return 0;
}

static int sweep(struct classes *cs, const struct moat_program *in, int f)
{
    size_t n = 0, at = 0;
    for (uint32_t i = 0; i < in->n_sets; i++)
        n += 2 * (size_t)in->sets[i]->f[f].n;
    struct edge *edges = calloc(n + 1, sizeof *edges);
    uint64_t *bits = calloc(cs->words, sizeof *bits);
    struct interval *v = calloc(n + 1, sizeof *v);
    int err = -ENOMEM;
    cs->f[f].v = v;
    if (!edges || !bits || !v)
        goto out;

    n = 0;
    for (uint32_t i = 0; i < in->n_sets; i++) {
        for (uint32_t k = 0; k < in->sets[i]->f[f].n; k++) {
            const struct moat_range *r = &in->sets[i]->f[f].v[k];
            edges[n++] = (struct edge){r->lo, i};
            if (r->hi != moat_range_max(f))
                edges[n++] = (struct edge){r->hi + 1, i};
        }
    }
    qsort(edges, n, sizeof *edges, by_at);

    moat_u128 start = 0;
    for (;;) {
        while (at < n && edges[at].at == start) {
            bits[edges[at].set / 64] ^= UINT64_C(1) << (edges[at].set % 64);
            at++;
        }
        uint32_t class;
        err = class_of(cs, bits, &class);
        if (err)
            goto out;
        if (cs->f[f].n == 0 || v[cs->f[f].n - 1].class != class)
            v[cs->f[f].n++] = (struct interval){start, class};
        if (at == n)
            break;
        start = edges[at].at;
    }
    err = 0;

out:
    free(edges);
    free(bits);
    return err;
}

/* Reserves `size` bytes at an offset that is a multiple of 8. */
static uint32_t place(size_t *end, size_t size)
{
    size_t at = (*end + 7) & ~(size_t)7;
    *end = at + size;
    return (uint32_t)at;
}

static void put_v6(uint8_t *to, moat_u128 v)
{
    for (int i = 15; i >= 0; i--, v >>= 8)
        to[i] = (uint8_t)v;
}

static void fill(uint8_t *blob, const struct moat_program *in, const struct classes *cs,
                 const struct moat_ruleset_body *body)
{
    memcpy(blob + sizeof(struct moat_ruleset_head), body, sizeof *body);
    if (in->n_rules)
        memcpy(blob + body->rules_off, in->rules, in->n_rules * sizeof *in->rules);
    uint64_t *sets = (uint64_t *)(blob + body->sets_off);
    for (uint32_t s = 0; s < body->n_sets; s++)
        for (uint32_t c = 0; c < cs->n; c++)
            if (cs->bitmap[(size_t)c * cs->words + s / 64] >> (s % 64) & 1)
                sets[(size_t)s * body->set_words + c / 64] |= UINT64_C(1) << (c % 64);
    uint32_t *v4 = (uint32_t *)(blob + body->v4_start_off);
    uint16_t *v4_class = (uint16_t *)(blob + body->v4_class_off);
    for (uint32_t i = 0; i < body->n_v4; i++) {
        v4[i] = (uint32_t)cs->f[RANGE_V4].v[i].start;
        v4_class[i] = (uint16_t)cs->f[RANGE_V4].v[i].class;
    }
    uint16_t *v6_class = (uint16_t *)(blob + body->v6_class_off);
    for (uint32_t i = 0; i < body->n_v6; i++) {
        put_v6(blob + body->v6_start_off + 16 * (size_t)i, cs->f[RANGE_V6].v[i].start);
        v6_class[i] = (uint16_t)cs->f[RANGE_V6].v[i].class;
    }
    memcpy(blob + body->strings_off, in->strings, in->strings_len);
}

static void seal(uint8_t *blob, size_t size, uint64_t generation)
{
    struct moat_ruleset_head *h = (struct moat_ruleset_head *)blob;
    XXH128_canonical_t digest;

    *h = (struct moat_ruleset_head){
        .magic = MOAT_RULESET_MAGIC,
        .version = MOAT_RULESET_VERSION,
        .head_size = sizeof *h,
        .size = (uint32_t)size,
        .generation = generation,
    };
    XXH128_canonicalFromHash(&digest, XXH3_128bits(blob + sizeof *h, size - sizeof *h));
    memcpy(h->digest, digest.digest, sizeof h->digest);
    h->checksum = XXH32(blob, size, 0);
}

static int lay_out(const struct moat_program *in, const struct classes *cs, uint8_t **blob,
                   size_t *size)
{
    struct moat_ruleset_body body = {
        .n_rules = in->n_rules,
        .n_classes = cs->n,
        .n_sets = in->n_sets,
        .set_words = (cs->n + 63) / 64,
        .n_v4 = cs->f[RANGE_V4].n,
        .n_v6 = cs->f[RANGE_V6].n,
        .strings_len = in->strings_len,
        .default_action = in->default_action,
        .default_flags = in->default_flags,
    };
    size_t end = sizeof(struct moat_ruleset_head) + sizeof body;
    body.rules_off = place(&end, in->n_rules * sizeof *in->rules);
    body.sets_off = place(&end, (size_t)in->n_sets * body.set_words * sizeof(uint64_t));
    body.v4_start_off = place(&end, body.n_v4 * sizeof(uint32_t));
    body.v4_class_off = place(&end, body.n_v4 * sizeof(uint16_t));
    body.v6_start_off = place(&end, (size_t)body.n_v6 * 16);
    body.v6_class_off = place(&end, body.n_v6 * sizeof(uint16_t));
    body.strings_off = place(&end, in->strings_len);
    end = (end + 7) & ~(size_t)7;
    *size = end;
    if (end > MOAT_RULESET_MAX_SIZE)
        return -E2BIG;

    *blob = calloc(1, end);
    if (!*blob)
        return -ENOMEM;
    fill(*blob, in, cs, &body);
    seal(*blob, end, in->generation);
    return 0;
}

int moat_emit(const struct moat_program *in, uint8_t **blob, size_t *size)
{
    struct classes cs = {.words = in->n_sets / 64 + 1};
    int err = 0;

    *size = 0;
    for (int f = 0; f < N_RANGE_FAMILIES && !err; f++)
        err = sweep(&cs, in, f);
    if (!err)
        err = lay_out(in, &cs, blob, size);
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        free(cs.f[f].v);
    free(cs.bitmap);
    free(cs.bucket);
    return err;
}
