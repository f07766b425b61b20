/* SPDX-License-Identifier: Apache-2.0 */

/* A ruleset may come from anywhere.  What is not exactly right is refused with a reason;
 * what is accepted can be indexed and matched without reading outside of it.  Blobs lie in
 * heap buffers of exactly their size, so that a sanitizer sees the first byte too many. */

#include "datapath/ruleset.h"

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/classify.h"
#include "datapath/ruleset_private.h"
#include "tests/lib/blob.h"

#define N_MUTANTS 150000

static uint64_t state;

static uint64_t next_random(void)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)(next_random() % n);
}

static void seed(uint64_t otherwise)
{
    const char *env = getenv("MOAT_SEED");

    state = env ? strtoull(env, NULL, 0) : otherwise;
    fprintf(stderr, "MOAT_SEED=%" PRIu64 "\n", state);
}

/* Five rules, three sets, some of everything. */
static uint8_t *sample(size_t *len)
{
    struct blob *b = blob_create();
    struct moat_rule *r;
    uint8_t *blob;

    blob_default(b, MOAT_REJECT, MOAT_RULE_F_LOG);
    r = blob_rule(b, MOAT_ALLOW, "web");
    r->dirs = MOAT_RULE_TO_VM;
    r->families = MOAT_RULE_IP4 | MOAT_RULE_IP6;
    r->proto = 6;
    r->dport_lo = r->dport_hi = 443;
    r->peer_set = blob_addresses(b, "10.0.0.0/24 10.9.0.1 2001:db8::/64");
    r = blob_rule(b, MOAT_LOG, "look");
    r->local_set = blob_addresses(b, "10.0.0.7 2001:db8::7");
    r = blob_rule(b, MOAT_NEXT_TIER, "go on");
    r->proto = 17;
    r->skip_to = 4;
    r = blob_rule(b, MOAT_DROP, "no");
    r->sport_lo = 1000;
    r->sport_hi = 2000;
    r->peer_set = blob_addresses(b, "10.0.0.128/25 192.168.0.0/16");
    r = blob_rule(b, MOAT_ALLOW, "base");
    r->tier = 1;
    r->flags = MOAT_RULE_F_LOG | MOAT_RULE_F_LOOSE;
    blob = blob_emit(b, len);
    blob_destroy(b);
    return blob;
}

static int check(const void *blob, size_t len)
{
    char err[160];

    return moat_ruleset_check(blob, len, err, sizeof err);
}

static struct moat_ruleset_body *body_of(uint8_t *blob)
{
    return (void *)(blob + sizeof(struct moat_ruleset_head));
}

/* --- What is right ------------------------------------------------------------- */

START_TEST(accepts_a_sound_blob)
{
    size_t len;
    uint8_t *blob = sample(&len);
    char err[160] = "";
    struct moat_ruleset *rs;

    ck_assert_msg(!moat_ruleset_check(blob, len, err, sizeof err), "%s", err);
    ck_assert_int_eq(moat_ruleset_check(blob, len, NULL, 0), 0);
    rs = moat_ruleset_create(blob);
    ck_assert_ptr_nonnull(rs);
    ck_assert_ptr_eq(moat_ruleset_head(rs), blob);
    for (uint32_t i = 0; i <= body_of(blob)->n_rules; i++)
        ck_assert_uint_eq(moat_ruleset_hits(rs)[i], 0);
    ck_assert_uint_eq((uintptr_t)moat_ruleset_hits(rs) % 64, 0);
    moat_ruleset_hits(rs)[body_of(blob)->n_rules]++;
    moat_ruleset_destroy(rs);
    moat_ruleset_destroy(NULL);
    free(blob);
}
END_TEST

START_TEST(accepts_a_policy_without_rules)
{
    struct moat_flow f = {.dir = MOAT_TO_VM, .family = MOAT_FAM_IP4, .proto = 6};
    struct blob *b = blob_create();
    struct moat_match d;
    struct moat_ruleset *rs;
    size_t len;
    uint8_t *blob;

    blob_default(b, MOAT_ALLOW, 0);
    blob = blob_emit(b, &len);
    ck_assert_int_eq(check(blob, len), 0);
    rs = moat_ruleset_create(blob);
    moat_classify(rs, &f, 1, &d);
    ck_assert_uint_eq(d.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(d.index, 0);
    moat_ruleset_destroy(rs);
    free(blob);
    blob_destroy(b);
}
END_TEST

/* As many rules as fit; then one byte more. */
START_TEST(accepts_up_to_the_limit)
{
    struct blob *b = blob_create();
    struct moat_ruleset *rs;
    char err[160];
    size_t len;
    uint8_t *blob, *more;

    for (unsigned i = 0; i < 7050; i++)
        blob_rule(b, MOAT_DROP, "");
    blob = blob_emit(b, &len);
    ck_assert_msg(!moat_ruleset_check(blob, len, err, sizeof err), "%s", err);
    rs = moat_ruleset_create(blob);
    ck_assert_ptr_nonnull(rs);
    moat_ruleset_destroy(rs);

    more = calloc(1, MOAT_RULESET_MAX_SIZE + 8);
    memcpy(more, blob, len);
    ((struct moat_ruleset_head *)more)->size = MOAT_RULESET_MAX_SIZE;
    blob_seal(more, MOAT_RULESET_MAX_SIZE);
    ck_assert_int_eq(check(more, MOAT_RULESET_MAX_SIZE), 0);
    ((struct moat_ruleset_head *)more)->size = MOAT_RULESET_MAX_SIZE + 1;
    blob_seal(more, MOAT_RULESET_MAX_SIZE + 1);
    ck_assert_int_eq(moat_ruleset_check(more, MOAT_RULESET_MAX_SIZE + 1, err, sizeof err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err, "at most"));
    free(more);
    free(blob);
    blob_destroy(b);
}
END_TEST

/* --- What is wrong ------------------------------------------------------------- */

enum where { HEAD, BODY, RULE0, RULE1, RULE2, RULE3, RULE4, SETS, V4, C4, V6, C6, STRINGS };

static size_t offset_of(uint8_t *blob, enum where w)
{
    const struct moat_ruleset_body *b = body_of(blob);

    switch (w) {
    case HEAD:
        return 0;
    case BODY:
        return sizeof(struct moat_ruleset_head);
    case SETS:
        return b->sets_off;
    case V4:
        return b->v4_start_off;
    case C4:
        return b->v4_class_off;
    case V6:
        return b->v6_start_off;
    case C6:
        return b->v6_class_off;
    case STRINGS:
        return b->strings_off;
    default:
        return b->rules_off + (w - RULE0) * sizeof(struct moat_rule);
    }
}

#define H(F) HEAD, offsetof(struct moat_ruleset_head, F), sizeof(((struct moat_ruleset_head *)0)->F)
#define B(F) BODY, offsetof(struct moat_ruleset_body, F), sizeof(((struct moat_ruleset_body *)0)->F)
#define R(I, F) RULE##I, offsetof(struct moat_rule, F), sizeof(((struct moat_rule *)0)->F)

/* One field of the sample set to one value; sealed again unless it is about the seal. */
static const struct corruption {
    enum where where;
    size_t offset, width;
    uint64_t value;
    const char *says;
    bool unsealed;
} corruptions[] = {
    {H(magic), 0, "magic", false},
    {H(magic), 0x4d524c53, "magic", false},
    {H(version), 0, "version", false},
    {H(version), 2, "version", false},
    {H(head_size), 0, "head_size", false},
    {H(head_size), 56, "head_size", false},
    {H(head_size), 72, "head_size", false},
    {H(size), 0, "size", false},
    {H(size), 144, "size", false},
    {H(size), UINT32_MAX, "size", false},
    {H(checksum), 0, "checksum", true},
    {H(checksum), 1, "checksum", true},
    {H(generation), 99, "checksum", true},
    {H(digest[0]), 0x5a, "checksum", true},
    {H(reserved[0]), 1, "head.reserved", false},
    {H(reserved[23]), 1, "head.reserved", false},

    {B(n_rules), UINT32_MAX, "rules", false},
    {B(n_rules), 0x80000000, "rules", false},
    {B(n_rules), 119304648, "rules", false}, /* times 36 is 32 in 32 bits */
    {B(rules_off), 0, "rules_off", false},
    {B(rules_off), 136, "rules_off", false},
    {B(rules_off), 148, "rules_off", false},
    {B(rules_off), 0xfffffff8, "rules", false},
    {B(n_classes), 0, "not 1 to 65536", false},
    {B(n_classes), 65537, "not 1 to 65536", false},
    {B(n_classes), UINT32_MAX, "not 1 to 65536", false},
    {B(n_classes), 65, "set_words", false},
    {B(n_classes), 1, "set 0", false},
    {B(n_sets), UINT32_MAX, "sets", false},
    {B(n_sets), 0x20000000, "sets", false}, /* times 8 is 0 in 32 bits */
    {B(n_sets), 2, "peer_set", false},
    {B(n_sets), 1, "local_set", false},
    {B(set_words), 0, "set_words", false},
    {B(set_words), 2, "set_words", false},
    {B(set_words), UINT32_MAX, "set_words", false},
    {B(sets_off), 64, "sets_off", false},
    {B(sets_off), 164, "sets_off", false},
    {B(sets_off), 0xfffffff8, "sets", false},
    {B(n_v4), 0, "n_v4", false},
    {B(n_v4), 0x40000001, "v4_start", false},
    {B(n_v4), UINT32_MAX, "v4_start", false},
    {B(v4_start_off), 8, "v4_start_off", false},
    {B(v4_start_off), 145, "v4_start_off", false},
    {B(v4_start_off), 0x7ffffff8, "v4_start", false},
    {B(v4_class_off), 8, "v4_class_off", false},
    {B(v4_class_off), 146, "v4_class_off", false},
    {B(v4_class_off), 0x7ffffff8, "v4_class", false},
    {B(n_v6), 0, "n_v6", false},
    {B(n_v6), 0x10000001, "v6_start", false},
    {B(n_v6), UINT32_MAX, "v6_start", false},
    {B(v6_start_off), 8, "v6_start_off", false},
    {B(v6_start_off), 146, "v6_start_off", false},
    {B(v6_start_off), 0x7ffffff8, "v6_start", false},
    {B(v6_class_off), 8, "v6_class_off", false},
    {B(v6_class_off), 146, "v6_class_off", false},
    {B(v6_class_off), 0x7ffffff8, "v6_class", false},
    {B(strings_off), 8, "strings_off", false},
    {B(strings_off), 146, "strings_off", false},
    {B(strings_off), 0x7ffffff8, "strings", false},
    {B(strings_len), UINT32_MAX, "strings", false},
    {B(strings_len), 0, "name", false},
    {B(strings_len), 7, "strings do not end", false},
    {B(default_action), MOAT_NEXT_TIER, "default_action", false},
    {B(default_action), MOAT_LOG, "default_action", false},
    {B(default_action), 255, "default_action", false},
    {B(default_flags), 4, "default_flags", false},
    {B(default_flags), 0x81, "default_flags", false},
    {B(pad[0]), 1, "pad", false},
    {B(pad[1]), 0x80, "pad", false},
    {B(reserved[0]), 1, "body.reserved", false},
    {B(reserved[4]), 0x80000000, "body.reserved", false},

    {R(0, id), 0, "rule 0: id", false},
    {R(0, dirs), 0, "rule 0: dirs", false},
    {R(4, dirs), 4, "rule 4: dirs", false},
    {R(1, dirs), 0x83, "rule 1: dirs", false},
    {R(0, families), 0, "rule 0: families", false},
    {R(0, families), 8, "rule 0: families", false},
    {R(3, families), 0x17, "rule 3: families", false},
    {R(0, action), 5, "rule 0: action", false},
    {R(0, action), 255, "rule 0: action", false},
    {R(0, action), MOAT_NEXT_TIER, "rule 0: skip_to", false},
    {R(2, action), MOAT_ALLOW, "rule 2: skip_to", false},
    {R(0, flags), 4, "rule 0: flags", false},
    {R(0, flags), 0x83, "rule 0: flags", false},
    {R(0, proto), 256, "rule 0: proto", false},
    {R(0, proto), 65534, "rule 0: proto", false},
    {R(0, tier), 1, "rule 1: tier", false},
    {R(3, tier), 2, "rule 4: tier", false},
    {R(1, sport_lo), 65535, NULL, false},
    {R(1, sport_hi), 0, NULL, false},
    {R(3, sport_lo), 2001, "rule 3: sport", false},
    {R(3, sport_hi), 999, "rule 3: sport", false},
    {R(0, dport_lo), 444, "rule 0: dport", false},
    {R(0, dport_hi), 442, "rule 0: dport", false},
    {R(0, peer_set), 3, "rule 0: peer_set", false},
    {R(4, peer_set), UINT32_MAX - 1, "rule 4: peer_set", false},
    {R(1, local_set), 3, "rule 1: local_set", false},
    {R(4, local_set), UINT32_MAX - 1, "rule 4: local_set", false},
    {R(2, skip_to), 0, "rule 2: skip_to", false},
    {R(2, skip_to), 2, "rule 2: skip_to", false},
    {R(2, skip_to), 3, NULL, false},
    {R(2, skip_to), 5, NULL, false},
    {R(2, skip_to), 6, "rule 2: skip_to", false},
    {R(2, skip_to), UINT32_MAX, "rule 2: skip_to", false},
    {R(4, skip_to), 5, "rule 4: skip_to", false},
    {R(0, name), 23, "rule 0: name", false},
    {R(4, name), UINT32_MAX, "rule 4: name", false},

    {SETS, 0, 8, UINT64_C(1) << 63, "set 0", false},
    {SETS, 8, 8, UINT64_MAX, "set 1", false},
    {V4, 0, 4, 1, "v4_start[0]", false},
    {V4, 4, 4, 0, "v4_start[1]", false},
    {V4, 4, 4, UINT32_MAX, "v4_start[2]", false},
    {V6, 0, 1, 1, "v6_start[0]", false},
    {V6, 15, 1, 1, "v6_start[0]", false},
    {V6, 16, 8, 0, "v6_start[1]", false},
    {V6, 16, 1, 0xff, "v6_start[2]", false},
    {C4, 0, 2, 65535, "v4_class[0]", false},
    {C6, 2, 2, 64, "v6_class[1]", false},
    {STRINGS, 22, 1, 'x', "strings do not end", false},
    {STRINGS, 0, 1, 0, NULL, false},
};

#define N_CORRUPTIONS ((int)(sizeof corruptions / sizeof corruptions[0]))

START_TEST(refuses_a_corrupted_field)
{
    const struct corruption *c = &corruptions[_i];
    char err[160] = "";
    size_t len;
    uint8_t *blob = sample(&len);
    uint8_t *at = blob + offset_of(blob, c->where) + c->offset;
    int rc;

    ck_assert_msg(memcmp(at, &c->value, c->width), "row %d changes nothing", _i);
    memcpy(at, &c->value, c->width);
    if (!c->unsealed)
        blob_seal(blob, len);
    rc = moat_ruleset_check(blob, len, err, sizeof err);
    if (c->says) {
        ck_assert_msg(rc == -EINVAL, "row %d (%s) was accepted", _i, c->says);
        ck_assert_msg(strstr(err, c->says) != NULL, "row %d: '%s' does not say '%s'", _i, err,
                      c->says);
    } else {
        ck_assert_msg(!rc, "row %d: %s", _i, err);
    }
    free(blob);
}
END_TEST

/* Neighbours of the table's rows that must pass, else a row may pass for a wrong reason. */
START_TEST(refuses_only_what_is_wrong)
{
    size_t len;
    uint8_t *blob = sample(&len);
    struct moat_ruleset_body *b = body_of(blob);

    ck_assert_uint_eq(b->n_rules, 5);
    ck_assert_uint_eq(b->n_sets, 3);
    ck_assert_uint_eq(b->set_words, 1);
    ck_assert_uint_eq(b->strings_len, 23);
    ck_assert_uint_ge(b->n_v4, 3);
    ck_assert_uint_ge(b->n_v6, 3);
    b->n_classes = 64;
    b->default_flags = MOAT_RULE_F_LOG | MOAT_RULE_F_LOOSE;
    ((uint64_t *)(blob + b->sets_off))[0] = UINT64_MAX;
    ((uint16_t *)(blob + b->v4_class_off))[0] = 63;
    ((struct moat_rule *)(blob + b->rules_off))[0].proto = 255;
    ((struct moat_ruleset_head *)blob)->generation = UINT64_MAX;
    blob_seal(blob, len);
    ck_assert_int_eq(check(blob, len), 0);
    free(blob);
}
END_TEST

START_TEST(refuses_any_flipped_bit)
{
    size_t len;
    uint8_t *blob = sample(&len);

    for (size_t bit = 0; bit < len * 8; bit++) {
        blob[bit / 8] ^= (uint8_t)(1u << bit % 8);
        ck_assert_msg(check(blob, len) == -EINVAL, "bit %zu", bit);
        blob[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    ck_assert_int_eq(check(blob, len), 0);
    free(blob);
}
END_TEST

/* A right checksum over a wrong digest, and over changed content. */
START_TEST(refuses_a_wrong_digest)
{
    const size_t digest = offsetof(struct moat_ruleset_head, digest);
    char err[160] = "";
    size_t len;
    uint8_t *blob = sample(&len);

    for (size_t i = digest; i < len; i++) {
        if (i == digest + 16)
            i = sizeof(struct moat_ruleset_head);
        blob[i] ^= 1;
        blob_checksum(blob, len);
        ck_assert_int_eq(moat_ruleset_check(blob, len, err, sizeof err), -EINVAL);
        ck_assert_msg(strstr(err, "digest") != NULL, "byte %zu: %s", i, err);
        blob[i] ^= 1;
    }
    free(blob);
}
END_TEST

/* Cut at every length; first as it is, then made to look whole. */
START_TEST(refuses_a_truncated_blob)
{
    char err[160];
    size_t len, n;
    uint8_t *blob = sample(&len);

    for (n = 0; n < len; n++) {
        uint8_t *cut = malloc(n ? n : 1);

        memcpy(cut, blob, n);
        ck_assert_msg(moat_ruleset_check(cut, n, err, sizeof err) == -EINVAL, "%zu bytes", n);
        if (n < sizeof(struct moat_ruleset_head) + sizeof(struct moat_ruleset_body))
            ck_assert_ptr_nonnull(strstr(err, "too short"));
        if (n >= sizeof(struct moat_ruleset_head)) {
            ((struct moat_ruleset_head *)cut)->size = (uint32_t)n;
            blob_seal(cut, n);
            ck_assert_msg(check(cut, n) == -EINVAL, "%zu bytes, sealed", n);
        }
        free(cut);
    }
    ck_assert_int_eq(check(blob, len), 0);
    free(blob);
}
END_TEST

START_TEST(refuses_a_longer_buffer)
{
    size_t len;
    uint8_t *blob = sample(&len);

    blob = realloc(blob, len + 8);
    memset(blob + len, 0, 8);
    ck_assert_int_eq(check(blob, len), 0);
    ck_assert_int_eq(check(blob, len + 1), -EINVAL);
    ck_assert_int_eq(check(blob, len + 8), -EINVAL);
    free(blob);
}
END_TEST

START_TEST(refuses_a_misaligned_buffer)
{
    char err[160] = "";
    size_t len;
    uint8_t *blob = sample(&len), *moved = malloc(len + 8);

    for (unsigned by = 1; by < 8; by++) {
        memcpy(moved + by, blob, len);
        ck_assert_int_eq(moat_ruleset_check(moved + by, len, err, sizeof err), -EINVAL);
        ck_assert_ptr_nonnull(strstr(err, "boundary"));
    }
    free(moved);
    free(blob);
}
END_TEST

START_TEST(keeps_the_reason_inside_its_buffer)
{
    char err[8] = "#######";
    size_t len;
    uint8_t *blob = sample(&len);

    blob[0] ^= 1;
    for (size_t n = 0; n < sizeof err; n++) {
        memset(err, '#', sizeof err);
        ck_assert_int_eq(moat_ruleset_check(blob, len, err, n), -EINVAL);
        for (size_t i = n; i < sizeof err; i++)
            ck_assert_int_eq(err[i], '#');
        if (n)
            ck_assert_uint_eq(strlen(err), n - 1);
    }
    free(blob);
}
END_TEST

/* --- The index -------------------------------------------------------------------- */

/* The candidates of one packet: what the classifier compares in full. */
static unsigned candidates(const struct rule_list *l, uint32_t port, uint32_t peer)
{
    const uint64_t *p = l->port_bits + (size_t)port * l->words;
    const uint64_t *q = l->peer_bits + (size_t)peer * l->words;
    unsigned n = 0;

    for (uint32_t i = 0; i < l->words; i++)
        n += (unsigned)__builtin_popcountll(p[i] & q[i]);
    return n;
}

/* Speed is in the lists: who is dealt elsewhere or filtered out costs nothing. */
START_TEST(deals_and_filters_well)
{
    static const uint8_t own[] = {6, 17, 132, 1, 58};
    struct blob *b = blob_create();
    struct moat_ruleset *rs;
    const struct rule_list *l;
    size_t len;
    uint8_t *blob;

    for (unsigned i = 0; i < 900; i++) { /* 90 a list: too few for trees */
        struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "");

        r->dirs = MOAT_RULE_TO_VM;
        r->families = i % 2 ? MOAT_RULE_IP4 : MOAT_RULE_IP6;
        r->proto = own[i % 5];
        r->dport_lo = r->dport_hi = (uint16_t)(i * 3);
        r->peer_set = blob_set(b);
        blob_set_add(b, r->peer_set, (uint16_t)(i / 10));
    }
    blob = blob_emit(b, &len);
    ck_assert_int_eq(check(blob, len), 0);
    rs = moat_ruleset_create(blob);
    for (unsigned i = 0; i < N_FAMILY_LISTS; i++)
        ck_assert_uint_eq(rs->lists[i].n, 0); /* from the VM */
    for (unsigned kind = 0; kind < N_KINDS; kind++) {
        l = &rs->lists[N_FAMILY_LISTS + kind];
        ck_assert_uint_eq(l->n, kind == KIND_OTHER ? 0 : 90);
        ck_assert_uint_eq(l[N_KINDS].n, l->n);
    }
    ck_assert_uint_eq(rs->lists[N_LISTS - 1].n, 0); /* ARP */
    l = &rs->lists[N_FAMILY_LISTS + KIND_TCP];
    ck_assert_uint_gt(l->n_ports, MAX_BUCKETS / 2);
    ck_assert_uint_le(l->n_ports, MAX_BUCKETS);
    ck_assert_uint_eq(l->n_peers, MAX_BUCKETS);
    for (uint32_t port = 0; port < l->n_ports; port++)
        for (uint32_t peer = 0; peer < MAX_BUCKETS; peer++)
            ck_assert_uint_le(candidates(l, port, peer), 3);

    /* Equal lists are one. */
    for (unsigned i = 1; i <= N_KINDS; i++)
        ck_assert_ptr_eq(rs->lists[0].rules, rs->lists[i].rules);
    moat_ruleset_destroy(rs);
    free(blob);
    blob_destroy(b);
}
END_TEST

/* --- What is odd ---------------------------------------------------------------- */

static const uint64_t odd_values[] = {0,
                                      1,
                                      2,
                                      3,
                                      63,
                                      64,
                                      65,
                                      143,
                                      144,
                                      255,
                                      256,
                                      65535,
                                      65536,
                                      65537,
                                      INT32_MAX,
                                      UINT64_C(0x80000000),
                                      UINT32_MAX - 7,
                                      UINT32_MAX,
                                      UINT64_MAX};

static void mutate(uint8_t *blob, size_t len)
{
    for (unsigned n = 1 + below(3); n > 0; n--) {
        /* The section table deserves half of it. */
        size_t at = below(2) ? sizeof(struct moat_ruleset_head) + below(80) : below((uint32_t)len);
        unsigned width = 1u << below(4);
        uint64_t v;

        if (at + width > len)
            continue;
        memcpy(&v, blob + at, width);
        switch (below(4)) {
        case 0:
            v = odd_values[below(sizeof odd_values / sizeof odd_values[0])];
            break;
        case 1:
            v ^= UINT64_C(1) << below(width * 8);
            break;
        case 2:
            v += below(17) - UINT64_C(8);
            break;
        default:
            v = next_random();
        }
        memcpy(blob + at, &v, width);
    }
}

static void use(const uint8_t *blob)
{
    static const uint8_t families[] = {MOAT_FAM_IP4, MOAT_FAM_IP6, MOAT_FAM_ARP};
    static const uint8_t protos[] = {6, 17, 1, 58, 132, 47, 0, 255};
    struct moat_ruleset *rs = moat_ruleset_create(blob);
    uint32_t n_rules = moat_ruleset_body((const void *)blob)->n_rules;
    struct moat_match d[32];
    struct moat_flow f[32];

    ck_assert_ptr_nonnull(rs);
    for (unsigned i = 0; i < 32; i++) {
        f[i] = (struct moat_flow){.dir = (uint8_t)below(2),
                                  .family = families[below(3)],
                                  .proto = protos[below(8)],
                                  .sport = (uint16_t)next_random(),
                                  .dport = below(2) ? 443 : (uint16_t)next_random()};
        for (unsigned k = 0; k < 16; k++) {
            f[i].local[k] = (uint8_t)next_random();
            f[i].remote[k] = (uint8_t)next_random();
        }
    }
    moat_classify(rs, f, 32, d);
    for (unsigned i = 0; i < 32; i++) {
        ck_assert_uint_le(d[i].verdict, MOAT_REJECT);
        ck_assert_uint_le(d[i].index, n_rules);
        moat_ruleset_hits(rs)[d[i].index]++;
    }
    moat_ruleset_destroy(rs);
}

START_TEST(survives_mutants)
{
    size_t len;
    uint8_t *blob = sample(&len);
    unsigned accepted = 0;

    seed(1);
    for (unsigned n = 0; n < N_MUTANTS; n++) {
        uint8_t *mutant = malloc(len);

        memcpy(mutant, blob, len);
        mutate(mutant, len);
        blob_seal(mutant, len);
        if (!check(mutant, len)) {
            use(mutant);
            accepted++;
        }
        free(mutant);
    }
    /* Too few: the mutations are too coarse to get past the section table. */
    ck_assert_uint_gt(accepted, N_MUTANTS / 20);
    ck_assert_uint_lt(accepted, N_MUTANTS * 19 / 20);
    free(blob);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ruleset");
    TCase *t = tcase_create("ruleset");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_test(t, accepts_a_sound_blob);
    tcase_add_test(t, accepts_a_policy_without_rules);
    tcase_add_test(t, accepts_up_to_the_limit);
    tcase_add_loop_test(t, refuses_a_corrupted_field, 0, N_CORRUPTIONS);
    tcase_add_test(t, refuses_only_what_is_wrong);
    tcase_add_test(t, refuses_any_flipped_bit);
    tcase_add_test(t, refuses_a_wrong_digest);
    tcase_add_test(t, refuses_a_truncated_blob);
    tcase_add_test(t, refuses_a_longer_buffer);
    tcase_add_test(t, refuses_a_misaligned_buffer);
    tcase_add_test(t, keeps_the_reason_inside_its_buffer);
    tcase_add_test(t, deals_and_filters_well);
    tcase_add_test(t, survives_mutants);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
