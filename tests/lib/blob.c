/* SPDX-License-Identifier: Apache-2.0 */

/* A set is kept as a bitmap of all 65536 possible classes and cut to size on the way out.
 *
 * blob_addresses splits the partition at the edges of each prefix, and each class found
 * inside of it into "inside" and "outside": the inside gets a new number, in every set
 * that the old one is in, and in the new set. */

#include "blob.h"

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAX_CLASSES 65536

/* Addresses of both families as 16 bytes in network order; IPv4 in the first 4. */
struct interval {
    uint8_t start[16];
    uint16_t class;
};

struct partition {
    struct interval *at;
    uint32_t n;
    size_t width; /* bytes of an address: 4 or 16 */
};

struct bitmap {
    uint64_t words[MAX_CLASSES / 64];
};

struct blob {
    struct moat_rule *rules;
    struct bitmap *sets;
    char *strings;
    struct partition v4, v6;
    uint32_t n_rules, n_sets, strings_len, n_classes;
    uint64_t generation;
    uint8_t action, flags;
    bool v4_by_hand, v6_by_hand;
};

static void misuse(const char *what)
{
    fprintf(stderr, "tests/lib/blob: %s\n", what);
    abort();
}

static void *grow(void *p, size_t n, size_t size)
{
    p = realloc(p, n * size);
    if (!p)
        misuse("out of memory");
    return p;
}

static bool test_bit(const struct bitmap *b, uint16_t i)
{
    return b->words[i / 64] >> i % 64 & 1;
}

static void set_bit(struct bitmap *b, uint16_t i)
{
    b->words[i / 64] |= UINT64_C(1) << i % 64;
}

struct blob *blob_create(void)
{
    struct blob *b = grow(NULL, 1, sizeof *b);

    *b = (struct blob){.v4.width = 4, .v6.width = 16, .n_classes = 1, .generation = 1};
    b->v4.at = grow(NULL, 1, sizeof *b->v4.at);
    b->v6.at = grow(NULL, 1, sizeof *b->v6.at);
    b->v4.at[0] = b->v6.at[0] = (struct interval){.class = 0};
    b->v4.n = b->v6.n = 1;
    return b;
}

void blob_destroy(struct blob *b)
{
    if (!b)
        return;
    free(b->rules);
    free(b->sets);
    free(b->strings);
    free(b->v4.at);
    free(b->v6.at);
    free(b);
}

void blob_generation(struct blob *b, uint64_t generation)
{
    b->generation = generation;
}

void blob_default(struct blob *b, uint8_t action, uint8_t flags)
{
    b->action = action;
    b->flags = flags;
}

struct moat_rule *blob_rule(struct blob *b, uint8_t action, const char *name)
{
    uint32_t len = (uint32_t)strlen(name) + 1;
    struct moat_rule *r;

    b->strings = grow(b->strings, b->strings_len + len, 1);
    memcpy(b->strings + b->strings_len, name, len);
    b->rules = grow(b->rules, b->n_rules + 1, sizeof *r);
    r = &b->rules[b->n_rules++];
    *r = (struct moat_rule){
        .id = b->n_rules,
        .dirs = MOAT_RULE_FROM_VM | MOAT_RULE_TO_VM,
        .families = MOAT_RULE_IP4 | MOAT_RULE_IP6 | MOAT_RULE_ARP,
        .action = action,
        .proto = MOAT_PROTO_ANY,
        .sport_hi = UINT16_MAX,
        .dport_hi = UINT16_MAX,
        .peer_set = MOAT_SET_ANY,
        .local_set = MOAT_SET_ANY,
        .skip_to = action == MOAT_NEXT_TIER ? b->n_rules : 0,
        .name = b->strings_len,
    };
    b->strings_len += len;
    return r;
}

uint32_t blob_n_rules(const struct blob *b)
{
    return b->n_rules;
}

void blob_classes(struct blob *b, uint32_t n)
{
    if (n > MAX_CLASSES)
        misuse("too many classes");
    if (b->n_classes < n)
        b->n_classes = n;
}

uint32_t blob_set(struct blob *b)
{
    b->sets = grow(b->sets, b->n_sets + 1, sizeof *b->sets);
    memset(&b->sets[b->n_sets], 0, sizeof *b->sets);
    return b->n_sets++;
}

void blob_set_add(struct blob *b, uint32_t set, uint16_t class)
{
    if (set >= b->n_sets)
        misuse("no such set");
    blob_classes(b, class + 1u);
    set_bit(&b->sets[set], class);
}

static void insert(struct partition *p, uint32_t at, const uint8_t *start, uint16_t class)
{
    p->at = grow(p->at, p->n + 1, sizeof *p->at);
    memmove(&p->at[at + 1], &p->at[at], (p->n - at) * sizeof *p->at);
    p->at[at] = (struct interval){.class = class};
    memcpy(p->at[at].start, start, p->width);
    p->n++;
}

static void append(struct partition *p, bool *by_hand, const uint8_t *start, uint16_t class)
{
    if (!*by_hand)
        p->n = 0;
    *by_hand = true;
    insert(p, p->n, start, class);
}

void blob_v4(struct blob *b, uint32_t start, uint16_t class)
{
    uint32_t be = htonl(start);

    append(&b->v4, &b->v4_by_hand, (const uint8_t *)&be, class);
    blob_classes(b, class + 1u);
}

void blob_v6(struct blob *b, const uint8_t start[16], uint16_t class)
{
    append(&b->v6, &b->v6_by_hand, start, class);
    blob_classes(b, class + 1u);
}

/* Index of the interval that begins at `edge`, which is made if need be. */
static uint32_t split(struct partition *p, const uint8_t *edge)
{
    uint32_t i = p->n;

    while (memcmp(p->at[i - 1].start, edge, p->width) > 0)
        i--;
    if (!memcmp(p->at[i - 1].start, edge, p->width))
        return i - 1;
    insert(p, i, edge, p->at[i - 1].class);
    return i;
}

/* A class like `old`, in all of its sets and in `set`. */
static uint16_t clone_class(struct blob *b, uint16_t old, uint32_t set)
{
    uint16_t class = (uint16_t)b->n_classes;

    blob_classes(b, b->n_classes + 1);
    for (uint32_t s = 0; s < b->n_sets; s++)
        if (test_bit(&b->sets[s], old))
            set_bit(&b->sets[s], class);
    set_bit(&b->sets[set], class);
    return class;
}

static void add_range(struct blob *b, struct partition *p, uint32_t set, const uint8_t *first,
                      const uint8_t *beyond)
{
    int32_t *fresh = grow(NULL, MAX_CLASSES, sizeof *fresh);
    uint32_t i = split(p, first), end = beyond ? split(p, beyond) : p->n;

    memset(fresh, -1, MAX_CLASSES * sizeof *fresh);
    for (; i < end; i++) {
        uint16_t old = p->at[i].class;

        if (test_bit(&b->sets[set], old))
            continue; /* by an earlier prefix of this set */
        if (fresh[old] < 0)
            fresh[old] = clone_class(b, old, set);
        p->at[i].class = (uint16_t)fresh[old];
    }
    free(fresh);
}

static void add_prefix(struct blob *b, uint32_t set, char *text)
{
    bool v6 = strchr(text, ':');
    struct partition *p = v6 ? &b->v6 : &b->v4;
    unsigned bits = (unsigned)p->width * 8, len = bits;
    char *slash = strchr(text, '/');
    uint8_t first[16], beyond[16];

    if (slash) {
        *slash = '\0';
        len = (unsigned)atoi(slash + 1);
    }
    if (inet_pton(v6 ? AF_INET6 : AF_INET, text, first) != 1 || len > bits)
        misuse("bad address");
    for (unsigned i = len; i < bits; i++)
        first[i / 8] &= (uint8_t) ~(0x80u >> i % 8);

    /* Add one at the prefix's last bit; a carry out of the top: there is no end. */
    memcpy(beyond, first, sizeof beyond);
    for (unsigned i = len; i-- > 0;) {
        beyond[i / 8] ^= (uint8_t)(0x80u >> i % 8);
        if (beyond[i / 8] & 0x80u >> i % 8) {
            add_range(b, p, set, first, beyond);
            return;
        }
    }
    add_range(b, p, set, first, NULL);
}

uint32_t blob_addresses(struct blob *b, const char *text)
{
    uint32_t set = blob_set(b);
    char *copy = strdup(text), *save = NULL;

    if (!copy)
        misuse("out of memory");
    for (char *t = strtok_r(copy, " ", &save); t; t = strtok_r(NULL, " ", &save))
        add_prefix(b, set, t);
    free(copy);
    return set;
}

/* --- Out --------------------------------------------------------------------- */

static uint32_t place(size_t *size, size_t len)
{
    size_t off = (*size + 7) & ~(size_t)7;

    *size = off + len;
    return (uint32_t)off;
}

void blob_checksum(void *blob, size_t len)
{
    struct moat_ruleset_head *h = blob;

    h->checksum = 0;
    h->checksum = XXH32(blob, len, 0);
}

void blob_seal(void *blob, size_t len)
{
    struct moat_ruleset_head *h = blob;
    XXH128_canonical_t digest;

    XXH128_canonicalFromHash(&digest,
                             XXH3_128bits((const uint8_t *)blob + sizeof *h, len - sizeof *h));
    memcpy(h->digest, digest.digest, sizeof h->digest);
    blob_checksum(blob, len);
}

uint8_t *blob_emit(const struct blob *b, size_t *len)
{
    struct moat_ruleset_head head = {
        .magic = MOAT_RULESET_MAGIC,
        .version = MOAT_RULESET_VERSION,
        .head_size = sizeof head,
        .generation = b->generation,
    };
    struct moat_ruleset_body body = {
        .n_rules = b->n_rules,
        .n_classes = b->n_classes,
        .n_sets = b->n_sets,
        .set_words = (b->n_classes + 63) / 64,
        .n_v4 = b->v4.n,
        .n_v6 = b->v6.n,
        .strings_len = b->strings_len,
        .default_action = b->action,
        .default_flags = b->flags,
    };
    size_t size = sizeof head + sizeof body, set_size = (size_t)body.set_words * 8;
    uint8_t *out;

    body.rules_off = place(&size, b->n_rules * sizeof *b->rules);
    body.sets_off = place(&size, b->n_sets * set_size);
    body.v4_start_off = place(&size, b->v4.n * sizeof(uint32_t));
    body.v4_class_off = place(&size, b->v4.n * sizeof(uint16_t));
    body.v6_start_off = place(&size, b->v6.n * (size_t)16);
    body.v6_class_off = place(&size, b->v6.n * sizeof(uint16_t));
    body.strings_off = place(&size, b->strings_len);
    head.size = (uint32_t)size;

    out = memset(grow(NULL, size, 1), 0, size);
    memcpy(out, &head, sizeof head);
    memcpy(out + sizeof head, &body, sizeof body);
    if (b->n_rules) {
        memcpy(out + body.rules_off, b->rules, b->n_rules * sizeof *b->rules);
        memcpy(out + body.strings_off, b->strings, b->strings_len);
    }
    for (uint32_t i = 0; i < b->n_sets; i++)
        memcpy(out + body.sets_off + i * set_size, &b->sets[i], set_size);
    for (uint32_t i = 0; i < b->v4.n; i++) {
        uint32_t start;

        memcpy(&start, b->v4.at[i].start, sizeof start);
        ((uint32_t *)(out + body.v4_start_off))[i] = ntohl(start);
        ((uint16_t *)(out + body.v4_class_off))[i] = b->v4.at[i].class;
    }
    for (uint32_t i = 0; i < b->v6.n; i++) {
        memcpy(out + body.v6_start_off + (size_t)i * 16, b->v6.at[i].start, 16);
        ((uint16_t *)(out + body.v6_class_off))[i] = b->v6.at[i].class;
    }
    blob_seal(out, size);
    *len = size;
    return out;
}
