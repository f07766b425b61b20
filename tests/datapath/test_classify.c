/* SPDX-License-Identifier: Apache-2.0 */

/* One rule at a time from tables, then whole rulesets against a plain reader of the blob,
 * which asks every rule and every interval in turn. */

#include "datapath/classify.h"
#include "datapath/ruleset_private.h"

#include <arpa/inet.h>
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/rulesets.h"
#include "tests/lib/blob.h"
#include "tests/lib/trials.h"

#define BURST 32

/* --- A plain reader --------------------------------------------------------------- */

static uint32_t plain_class(const struct moat_ruleset_head *h, uint8_t family, const uint8_t *addr)
{
    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    const uint32_t *v4 = moat_ruleset_at(h, b->v4_start_off);
    const uint8_t(*v6)[16] = moat_ruleset_at(h, b->v6_start_off);
    const uint16_t *class =
        moat_ruleset_at(h, family == MOAT_FAM_IP6 ? b->v6_class_off : b->v4_class_off);
    uint32_t a, i;

    if (family == MOAT_FAM_IP6) {
        for (i = b->n_v6 - 1; memcmp(v6[i], addr, 16) > 0;)
            i--;
    } else {
        memcpy(&a, addr, 4);
        for (i = b->n_v4 - 1; v4[i] > ntohl(a);)
            i--;
    }
    return class[i];
}

static bool plain_in(const struct moat_ruleset_head *h, uint32_t set, uint32_t class)
{
    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    const uint64_t *sets = moat_ruleset_at(h, b->sets_off);

    return set == MOAT_SET_ANY ||
           (sets[(size_t)set * b->set_words + class / 64] & UINT64_C(1) << class % 64);
}

static bool plain_match(const struct moat_ruleset_head *h, const struct moat_rule *r,
                        const struct moat_flow *f)
{
    uint8_t family = f->family == MOAT_FAM_IP4   ? MOAT_RULE_IP4
                     : f->family == MOAT_FAM_IP6 ? MOAT_RULE_IP6
                                                 : MOAT_RULE_ARP;

    if (!(r->dirs & 1u << f->dir) || !(r->families & family))
        return false;
    if (r->proto != MOAT_PROTO_ANY && r->proto != f->proto)
        return false;
    if (f->sport < r->sport_lo || f->sport > r->sport_hi)
        return false;
    if (f->dport < r->dport_lo || f->dport > r->dport_hi)
        return false;
    if (!plain_in(h, r->peer_set, plain_class(h, f->family, f->remote)))
        return false;
    return plain_in(h, r->local_set, plain_class(h, f->family, f->local));
}

static struct moat_match plain(const void *blob, const struct moat_flow *f)
{
    const struct moat_ruleset_head *h = blob;
    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    const struct moat_rule *rules = moat_ruleset_at(h, b->rules_off);
    struct moat_match m = {.verdict = b->default_action, .index = b->n_rules};
    uint8_t flags = b->default_flags;

    for (uint32_t i = 0; i < b->n_rules; i++) {
        const struct moat_rule *r = &rules[i];

        if (!plain_match(h, r, f))
            continue;
        if (r->action == MOAT_NEXT_TIER) {
            i = r->skip_to - 1;
            continue;
        }
        if (r->action == MOAT_LOG) {
            if (!m.logged)
                m.log_rule = r->id;
            m.logged = 1;
            continue;
        }
        m.verdict = r->action;
        m.index = i;
        m.rule = r->id;
        flags = r->flags;
        break;
    }
    m.loose = !!(flags & MOAT_RULE_F_LOOSE);
    if (flags & MOAT_RULE_F_LOG && !m.logged) {
        m.logged = 1;
        m.log_rule = m.rule;
    }
    return m;
}

/* --- Help -------------------------------------------------------------------------- */

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

static bool one_in(uint32_t n)
{
    return !below(n);
}

static void seed(uint64_t otherwise)
{
    const char *env = getenv("MOAT_SEED");

    state = env ? strtoull(env, NULL, 0) : otherwise;
    fprintf(stderr, "MOAT_SEED=%" PRIu64 "\n", state);
}

/* The ruleset of a builder that is no longer needed. */
static struct moat_ruleset *finish(struct blob *b, uint8_t **blob)
{
    struct moat_ruleset *rs;
    char err[160];
    size_t len;

    *blob = blob_emit(b, &len);
    blob_destroy(b);
    ck_assert_msg(!moat_ruleset_check(*blob, len, err, sizeof err), "%s", err);
    rs = moat_ruleset_create(*blob);
    ck_assert_ptr_nonnull(rs);
    return rs;
}

static void set_address(uint8_t out[16], const char *text)
{
    memset(out, 0, 16);
    if (text)
        ck_assert_int_eq(inet_pton(strchr(text, ':') ? AF_INET6 : AF_INET, text, out), 1);
}

static struct moat_flow flow(uint8_t dir, const char *local, const char *remote, uint8_t proto,
                             uint16_t sport, uint16_t dport)
{
    struct moat_flow f = {.dir = dir, .proto = proto, .sport = sport, .dport = dport};

    f.family = strchr(local, ':') ? MOAT_FAM_IP6 : MOAT_FAM_IP4;
    set_address(f.local, local);
    set_address(f.remote, remote);
    return f;
}

/* --- What one rule matches ------------------------------------------------------------ */

#define IP4 MOAT_FAM_IP4
#define IP6 MOAT_FAM_IP6
#define ARP MOAT_FAM_ARP
#define OUT MOAT_FROM_VM
#define IN MOAT_TO_VM

/* A rule that differs from "everything" by the fields that are not zero; NONE: 0. */
#define NONE 0xffff

struct narrow {
    uint8_t dirs, families;
    uint16_t proto, sport[2], dport[2];
    const char *peer, *local;
};

/* clang-format off */
static const struct match_row {
    struct narrow rule;
    uint8_t dir, family, proto;
    uint16_t sport, dport;
    const char *local, *remote;
    bool matches;
} match_rows[] = {
    /* Nothing asked: all families, directions and protocols. */
    {{0}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", true},
    {{0}, IN, IP6, 58, 0, 128, "2001:db8::1", "2001:db8::2", true},
    {{0}, IN, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", true},
    {{0}, OUT, IP4, 255, 0, 0, "0.0.0.0", "255.255.255.255", true},
    {{0}, OUT, IP4, 17, 65535, 65535, "10.0.0.1", "10.0.0.2", true},

    /* Direction. */
    {{.dirs = MOAT_RULE_FROM_VM}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", true},
    {{.dirs = MOAT_RULE_FROM_VM}, IN, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", false},
    {{.dirs = MOAT_RULE_TO_VM}, IN, IP6, 6, 1, 2, "::1", "::2", true},
    {{.dirs = MOAT_RULE_TO_VM}, OUT, IP6, 6, 1, 2, "::1", "::2", false},
    {{.dirs = MOAT_RULE_TO_VM}, OUT, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", false},

    /* Family. */
    {{.families = MOAT_RULE_IP4}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", true},
    {{.families = MOAT_RULE_IP4}, OUT, IP6, 6, 1, 2, "::1", "::2", false},
    {{.families = MOAT_RULE_IP4}, OUT, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", false},
    {{.families = MOAT_RULE_IP6}, OUT, IP6, 6, 1, 2, "::1", "::2", true},
    {{.families = MOAT_RULE_IP6}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", false},
    {{.families = MOAT_RULE_ARP}, OUT, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", true},
    {{.families = MOAT_RULE_ARP}, OUT, IP4, 0, 0, 0, "10.0.0.1", "10.0.0.2", false},

    /* Protocol: those with a list of their own, and the rest. */
    {{.proto = 6}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", true},
    {{.proto = 6}, OUT, IP4, 17, 1, 2, "10.0.0.1", "10.0.0.2", false},
    {{.proto = 17}, OUT, IP6, 17, 1, 2, "::1", "::2", true},
    {{.proto = 17}, OUT, IP6, 136, 1, 2, "::1", "::2", false},
    {{.proto = 136}, OUT, IP6, 136, 1, 2, "::1", "::2", true},
    {{.proto = 132}, OUT, IP4, 132, 1, 2, "10.0.0.1", "10.0.0.2", true},
    {{.proto = 132}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.0.2", false},
    {{.proto = 1}, OUT, IP4, 1, 0, 8, "10.0.0.1", "10.0.0.2", true},
    {{.proto = 1}, OUT, IP4, 58, 0, 8, "10.0.0.1", "10.0.0.2", false},
    {{.proto = 58}, OUT, IP6, 58, 0, 128, "::1", "::2", true},
    {{.proto = 58}, OUT, IP6, 1, 0, 128, "::1", "::2", false},
    {{.proto = 1}, OUT, IP6, 1, 0, 128, "::1", "::2", true},
    {{.proto = 47}, OUT, IP4, 47, 0, 0, "10.0.0.1", "10.0.0.2", true},
    {{.proto = 47}, OUT, IP4, 50, 0, 0, "10.0.0.1", "10.0.0.2", false},
    {{.proto = 255}, OUT, IP4, 255, 0, 0, "10.0.0.1", "10.0.0.2", true},
    {{.proto = NONE}, OUT, IP6, 0, 0, 0, "::1", "::2", true},
    {{.proto = NONE}, OUT, IP6, 6, 0, 0, "::1", "::2", false},
    {{.proto = 6}, OUT, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", false},

    /* Ports: both ends of a range are in it. */
    {{.dport = {80, 90}}, OUT, IP4, 6, 1, 79, "10.0.0.1", "10.0.0.2", false},
    {{.dport = {80, 90}}, OUT, IP4, 6, 1, 80, "10.0.0.1", "10.0.0.2", true},
    {{.dport = {80, 90}}, OUT, IP4, 6, 1, 90, "10.0.0.1", "10.0.0.2", true},
    {{.dport = {80, 90}}, OUT, IP4, 6, 1, 91, "10.0.0.1", "10.0.0.2", false},
    {{.dport = {80, 90}}, OUT, IP4, 6, 85, 1, "10.0.0.1", "10.0.0.2", false},
    {{.dport = {NONE, 1}}, OUT, IP4, 6, 9, 0, "10.0.0.1", "10.0.0.2", true},
    {{.dport = {NONE, 1}}, OUT, IP4, 6, 9, 2, "10.0.0.1", "10.0.0.2", false},
    {{.dport = {1, 65535}}, OUT, IP4, 6, 9, 65535, "10.0.0.1", "10.0.0.2", true},
    {{.dport = {1, 65535}}, OUT, IP4, 6, 9, 0, "10.0.0.1", "10.0.0.2", false},
    {{.sport = {53, 53}}, IN, IP6, 17, 53, 9, "::1", "::2", true},
    {{.sport = {53, 53}}, IN, IP6, 17, 52, 9, "::1", "::2", false},
    {{.sport = {53, 53}}, IN, IP6, 17, 54, 53, "::1", "::2", false},

    /* ICMP: type and code; other protocols and ARP: 0 and 0. */
    {{.proto = 1, .dport = {3, 3}, .sport = {4, 4}}, IN, IP4, 1, 4, 3, "10.0.0.1", "10.0.0.2", true},
    {{.proto = 1, .dport = {3, 3}, .sport = {4, 4}}, IN, IP4, 1, 1, 3, "10.0.0.1", "10.0.0.2", false},
    {{.proto = 58, .dport = {133, 136}}, IN, IP6, 58, 0, 134, "::1", "::2", true},
    {{.proto = 58, .dport = {133, 136}}, IN, IP6, 58, 0, 137, "::1", "::2", false},
    {{.proto = 47, .dport = {1, 9}}, IN, IP4, 47, 0, 0, "10.0.0.1", "10.0.0.2", false},
    {{.dport = {1, 9}}, IN, ARP, 0, 0, 0, "10.0.0.1", "10.0.0.2", false},

    /* Peers: the remote side, whatever the direction. */
    {{.peer = "10.0.0.0/24"}, OUT, IP4, 6, 1, 2, "10.9.9.9", "10.0.0.0", true},
    {{.peer = "10.0.0.0/24"}, IN, IP4, 6, 1, 2, "10.9.9.9", "10.0.0.255", true},
    {{.peer = "10.0.0.0/24"}, IN, IP4, 6, 1, 2, "10.9.9.9", "9.255.255.255", false},
    {{.peer = "10.0.0.0/24"}, IN, IP4, 6, 1, 2, "10.9.9.9", "10.0.1.0", false},
    {{.peer = "10.0.0.0/24"}, OUT, IP4, 6, 1, 2, "10.0.0.1", "10.0.1.0", false},
    {{.peer = "10.0.0.0/24"}, IN, IP6, 6, 1, 2, "::1", "a00::", false},
    {{.peer = "10.0.0.0/24"}, IN, ARP, 0, 0, 0, "10.9.9.9", "10.0.0.3", true},
    {{.peer = "10.0.0.0/24"}, IN, ARP, 0, 0, 0, "10.9.9.9", "10.0.1.3", false},
    {{.peer = "0.0.0.0/32 255.255.255.255/32"}, IN, IP4, 6, 1, 2, "1.1.1.1", "0.0.0.0", true},
    {{.peer = "0.0.0.0/32 255.255.255.255/32"}, IN, IP4, 6, 1, 2, "1.1.1.1", "0.0.0.1", false},
    {{.peer = "0.0.0.0/32 255.255.255.255/32"}, IN, IP4, 6, 1, 2, "1.1.1.1", "255.255.255.254", false},
    {{.peer = "0.0.0.0/32 255.255.255.255/32"}, IN, IP4, 6, 1, 2, "1.1.1.1", "255.255.255.255", true},
    {{.peer = "0.0.0.0/0"}, IN, IP4, 6, 1, 2, "1.1.1.1", "200.0.0.1", true},
    {{.peer = "0.0.0.0/0"}, IN, IP6, 6, 1, 2, "::1", "::2", false},
    {{.peer = "128.0.0.0/1"}, IN, IP4, 6, 1, 2, "1.1.1.1", "127.255.255.255", false},
    {{.peer = "128.0.0.0/1"}, IN, IP4, 6, 1, 2, "1.1.1.1", "128.0.0.0", true},
    {{.peer = "2001:db8::/64"}, IN, IP6, 6, 1, 2, "::1", "2001:db8::", true},
    {{.peer = "2001:db8::/64"}, IN, IP6, 6, 1, 2, "::1", "2001:db8::ffff:ffff:ffff:ffff", true},
    {{.peer = "2001:db8::/64"}, IN, IP6, 6, 1, 2, "::1", "2001:db8:0:1::", false},
    {{.peer = "2001:db8::/64"}, IN, IP6, 6, 1, 2, "::1", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", false},
    {{.peer = "2001:db8::8000:0:0:5"}, IN, IP6, 6, 1, 2, "::1", "2001:db8::8000:0:0:5", true},
    {{.peer = "2001:db8::8000:0:0:5"}, IN, IP6, 6, 1, 2, "::1", "2001:db8::8000:0:0:4", false},
    {{.peer = "2001:db8::8000:0:0:5"}, IN, IP6, 6, 1, 2, "::1", "2001:db8::5", false},
    {{.peer = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, IN, IP6, 6, 1, 2, "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true},
    {{.peer = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, IN, IP6, 6, 1, 2, "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", false},

    /* Local addresses. */
    {{.local = "10.0.0.5"}, IN, IP4, 6, 1, 2, "10.0.0.5", "10.0.0.6", true},
    {{.local = "10.0.0.5"}, OUT, IP4, 6, 1, 2, "10.0.0.5", "10.0.0.6", true},
    {{.local = "10.0.0.5"}, OUT, IP4, 6, 1, 2, "10.0.0.6", "10.0.0.5", false},
    {{.local = "10.0.0.5"}, OUT, ARP, 0, 0, 0, "10.0.0.5", "10.0.0.6", true},
    {{.local = "2001:db8::5"}, OUT, IP6, 17, 1, 2, "2001:db8::5", "::1", true},
    {{.local = "2001:db8::5"}, OUT, IP6, 17, 1, 2, "2001:db8::6", "2001:db8::5", false},
    {{.peer = "10.0.0.0/24", .local = "10.0.0.5"}, OUT, IP4, 6, 1, 2, "10.0.0.5", "10.0.0.6", true},
    {{.peer = "10.0.0.0/24", .local = "10.0.0.5"}, OUT, IP4, 6, 1, 2, "10.0.0.5", "10.0.1.6", false},
    {{.peer = "10.0.0.0/24", .local = "10.0.0.5"}, OUT, IP4, 6, 1, 2, "10.0.0.4", "10.0.0.6", false},
};
/* clang-format on */

#define N_MATCH_ROWS ((int)(sizeof match_rows / sizeof match_rows[0]))

static uint16_t or_zero(uint16_t v)
{
    return v == NONE ? 0 : v;
}

static void apply(struct blob *b, struct moat_rule *r, const struct narrow *n)
{
    if (n->dirs)
        r->dirs = n->dirs;
    if (n->families)
        r->families = n->families;
    if (n->proto)
        r->proto = or_zero(n->proto);
    if (n->sport[0]) {
        r->sport_lo = or_zero(n->sport[0]);
        r->sport_hi = n->sport[1];
    }
    if (n->dport[0]) {
        r->dport_lo = or_zero(n->dport[0]);
        r->dport_hi = n->dport[1];
    }
    if (n->peer)
        r->peer_set = blob_addresses(b, n->peer);
    if (n->local)
        r->local_set = blob_addresses(b, n->local);
}

/* `before` rules that match nothing of this and so move it within the bit tables. */
static void try_row(const struct match_row *row, unsigned before)
{
    struct blob *b = blob_create();
    struct moat_flow f = {.dir = row->dir,
                          .family = row->family,
                          .proto = row->proto,
                          .sport = row->sport,
                          .dport = row->dport};
    struct moat_ruleset *rs;
    struct moat_match m;
    uint8_t *blob;

    set_address(f.local, row->local);
    set_address(f.remote, row->remote);
    for (unsigned i = 0; i < before; i++) {
        struct moat_rule *r = blob_rule(b, MOAT_REJECT, "before");

        r->proto = 99;
        r->dport_lo = r->dport_hi = (uint16_t)(i * 7 + 100);
    }
    apply(b, blob_rule(b, MOAT_ALLOW, "it"), &row->rule);
    rs = finish(b, &blob);
    moat_classify(rs, &f, 1, &m);
    ck_assert_uint_eq(m.verdict, row->matches ? MOAT_ALLOW : MOAT_DROP);
    ck_assert_uint_eq(m.index, row->matches ? before : before + 1);
    ck_assert_uint_eq(m.rule, row->matches ? before + 1 : 0);
    ck_assert_uint_eq(m.logged, 0);
    ck_assert_uint_eq(m.loose, 0);
    ck_assert_uint_eq(plain(blob, &f).verdict, m.verdict);
    moat_ruleset_destroy(rs);
    free(blob);
}

START_TEST(matches_as_the_row_says)
{
    try_row(&match_rows[_i], 0);
    try_row(&match_rows[_i], 1);
    try_row(&match_rows[_i], 63);
    try_row(&match_rows[_i], 64);
    try_row(&match_rows[_i], 200);
}
END_TEST

/* --- What a list of rules decides ----------------------------------------------------- */

#define MAX_LIST 8

/* dport_hi: the highest port that the rule matches; 0: all of them. */
/* clang-format off */
static const struct list_row {
    const char *what;
    struct {
        uint8_t action, flags;
        uint16_t dport_hi;
        uint32_t skip_to;
    } rules[MAX_LIST];
    unsigned n;
    uint8_t default_action, default_flags;
    struct moat_match want; /* for dport 100 */
} list_rows[] = {
    {"the first match wins", {{MOAT_DROP, 0, 99, 0}, {MOAT_ALLOW, 0, 100, 0}, {MOAT_REJECT, 0, 0, 0}}, 3, MOAT_DROP, 0, {MOAT_ALLOW, 0, 0, 0, 1, 2, 0}},
    {"reject is a verdict", {{MOAT_REJECT, 0, 0, 0}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_REJECT, 0, 0, 0, 0, 1, 0}},
    {"drop is a verdict", {{MOAT_DROP, 0, 0, 0}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_ALLOW, 0, {MOAT_DROP, 0, 0, 0, 0, 1, 0}},

    {"default drop", {{MOAT_ALLOW, 0, 9, 0}}, 1, MOAT_DROP, 0, {MOAT_DROP, 0, 0, 0, 1, 0, 0}},
    {"default allow", {{MOAT_DROP, 0, 9, 0}}, 1, MOAT_ALLOW, 0, {MOAT_ALLOW, 0, 0, 0, 1, 0, 0}},
    {"default reject", {{MOAT_ALLOW, 0, 9, 0}}, 1, MOAT_REJECT, 0, {MOAT_REJECT, 0, 0, 0, 1, 0, 0}},
    {"default with flags", {{MOAT_DROP, 0, 9, 0}}, 1, MOAT_ALLOW, MOAT_RULE_F_LOG | MOAT_RULE_F_LOOSE, {MOAT_ALLOW, 1, 1, 0, 1, 0, 0}},

    {"flag log", {{MOAT_ALLOW, MOAT_RULE_F_LOG, 0, 0}}, 1, MOAT_DROP, 0, {MOAT_ALLOW, 1, 0, 0, 0, 1, 1}},
    {"flag loose", {{MOAT_ALLOW, MOAT_RULE_F_LOOSE, 0, 0}}, 1, MOAT_DROP, 0, {MOAT_ALLOW, 0, 1, 0, 0, 1, 0}},
    {"flags of a rule that does not match", {{MOAT_DROP, 3, 9, 0}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 3, {MOAT_ALLOW, 0, 0, 0, 1, 2, 0}},

    {"a log rule goes on", {{MOAT_LOG, 0, 0, 0}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_ALLOW, 1, 0, 0, 1, 2, 1}},
    {"the first log rule is named", {{MOAT_LOG, 0, 9, 0}, {MOAT_LOG, 0, 0, 0}, {MOAT_LOG, 0, 0, 0}, {MOAT_DROP, MOAT_RULE_F_LOG, 0, 0}}, 4, MOAT_ALLOW, 0, {MOAT_DROP, 1, 0, 0, 3, 4, 2}},
    {"a log rule, then the default", {{MOAT_LOG, 0, 0, 0}}, 1, MOAT_DROP, 0, {MOAT_DROP, 1, 0, 0, 1, 0, 1}},
    {"a log rule, then a logging default", {{MOAT_LOG, 0, 0, 0}}, 1, MOAT_DROP, MOAT_RULE_F_LOG, {MOAT_DROP, 1, 0, 0, 1, 0, 1}},
    {"a log rule after the verdict", {{MOAT_ALLOW, 0, 0, 0}, {MOAT_LOG, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_ALLOW, 0, 0, 0, 0, 1, 0}},
    {"flags of a log rule mean nothing", {{MOAT_LOG, MOAT_RULE_F_LOOSE, 0, 0}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_ALLOW, 1, 0, 0, 1, 2, 1}},

    {"next-tier skips", {{MOAT_NEXT_TIER, 0, 0, 2}, {MOAT_ALLOW, 0, 0, 0}, {MOAT_REJECT, 0, 0, 0}}, 3, MOAT_DROP, 0, {MOAT_REJECT, 0, 0, 0, 2, 3, 0}},
    {"next-tier that does not match", {{MOAT_NEXT_TIER, 0, 9, 2}, {MOAT_ALLOW, 0, 0, 0}, {MOAT_REJECT, 0, 0, 0}}, 3, MOAT_DROP, 0, {MOAT_ALLOW, 0, 0, 0, 1, 2, 0}},
    {"next-tier to the next rule", {{MOAT_NEXT_TIER, 0, 0, 1}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_ALLOW, 0, 0, 0, 1, 2, 0}},
    {"next-tier to the default", {{MOAT_NEXT_TIER, 0, 0, 2}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_REJECT, 0, {MOAT_REJECT, 0, 0, 0, 2, 0, 0}},
    {"next-tier to a rule that does not match", {{MOAT_NEXT_TIER, 0, 0, 2}, {MOAT_ALLOW, 0, 0, 0}, {MOAT_DROP, 0, 9, 0}, {MOAT_REJECT, 0, 0, 0}}, 4, MOAT_DROP, 0, {MOAT_REJECT, 0, 0, 0, 3, 4, 0}},
    {"next-tier twice", {{MOAT_NEXT_TIER, 0, 0, 2}, {MOAT_ALLOW, 0, 0, 0}, {MOAT_NEXT_TIER, 0, 0, 4}, {MOAT_ALLOW, 0, 0, 0}, {MOAT_DROP, 0, 0, 0}}, 5, MOAT_ALLOW, 0, {MOAT_DROP, 0, 0, 0, 4, 5, 0}},
    {"next-tier skips log rules, not what was logged", {{MOAT_LOG, 0, 0, 0}, {MOAT_NEXT_TIER, MOAT_RULE_F_LOG, 0, 3}, {MOAT_LOG, 0, 0, 0}, {MOAT_DROP, 0, 0, 0}}, 4, MOAT_ALLOW, 0, {MOAT_DROP, 1, 0, 0, 3, 4, 1}},
    {"flags of next-tier mean nothing", {{MOAT_NEXT_TIER, 3, 0, 1}, {MOAT_ALLOW, 0, 0, 0}}, 2, MOAT_DROP, 0, {MOAT_ALLOW, 0, 0, 0, 1, 2, 0}},
};
/* clang-format on */

#define N_LIST_ROWS ((int)(sizeof list_rows / sizeof list_rows[0]))

/* `apart` rules of another protocol and direction stand between any two. */
static void try_list(const struct list_row *row, unsigned apart)
{
    struct moat_flow f = flow(MOAT_TO_VM, "10.0.0.1", "10.0.0.2", 6, 1, 100);
    struct blob *b = blob_create();
    uint32_t step = apart + 1;
    struct moat_ruleset *rs;
    struct moat_match m;
    uint8_t *blob;

    blob_default(b, row->default_action, row->default_flags);
    for (unsigned i = 0; i < row->n; i++) {
        struct moat_rule *r = blob_rule(b, row->rules[i].action, "it");

        r->flags = row->rules[i].flags;
        r->skip_to = row->rules[i].skip_to * step;
        r->id = i + 1;
        if (row->rules[i].dport_hi)
            r->dport_hi = row->rules[i].dport_hi;
        for (unsigned k = 0; k < apart; k++) {
            r = blob_rule(b, MOAT_REJECT, "between");
            r->dirs = k % 2 ? MOAT_RULE_FROM_VM : MOAT_RULE_TO_VM;
            r->proto = k % 2 ? MOAT_PROTO_ANY : 17;
            r->id = 1000;
        }
    }
    rs = finish(b, &blob);
    moat_classify(rs, &f, 1, &m);
    ck_assert_msg(m.verdict == row->want.verdict && m.logged == row->want.logged &&
                      m.loose == row->want.loose && m.index == row->want.index * step &&
                      m.rule == row->want.rule && m.log_rule == row->want.log_rule,
                  "%s, %u apart: verdict %u logged %u loose %u index %u rule %u log_rule %u",
                  row->what, apart, m.verdict, m.logged, m.loose, m.index, m.rule, m.log_rule);
    moat_ruleset_destroy(rs);
    free(blob);
}

START_TEST(decides_as_the_row_says)
{
    try_list(&list_rows[_i], 0);
    try_list(&list_rows[_i], 1);
    try_list(&list_rows[_i], 64);
    try_list(&list_rows[_i], 101);
}
END_TEST

/* --- Bursts, odd packets ----------------------------------------------------------------- */

START_TEST(judges_a_burst_each_for_itself)
{
    struct blob *b = blob_create();
    struct moat_match m[BURST + 1];
    struct moat_flow f[BURST];
    struct moat_rule *r;
    struct moat_ruleset *rs;
    uint8_t *blob;

    for (uint16_t i = 0; i < BURST; i++) {
        r = blob_rule(b, i % 2 ? MOAT_ALLOW : MOAT_LOG, "it");
        r->dport_lo = r->dport_hi = i;
    }
    rs = finish(b, &blob);
    for (uint16_t i = 0; i < BURST; i++)
        f[i] = flow(i % 2, "10.0.0.1", "10.0.0.2", 6, 1, i);
    for (unsigned n = 0; n <= BURST; n++) {
        memset(m, 0xa5, sizeof m);
        moat_classify(rs, f, n, m);
        for (unsigned i = 0; i < n; i++) {
            ck_assert_uint_eq(m[i].rule, i % 2 ? i + 1 : 0);
            ck_assert_uint_eq(m[i].verdict, i % 2 ? MOAT_ALLOW : MOAT_DROP);
            ck_assert_uint_eq(m[i].logged, i % 2 ? 0 : 1);
            ck_assert_uint_eq(m[i].log_rule, i % 2 ? 0 : i + 1);
        }
        for (size_t i = n * sizeof m[0]; i < sizeof m; i++)
            ck_assert_uint_eq(((uint8_t *)m)[i], 0xa5);
    }
    for (unsigned i = 0; i <= BURST; i++)
        ck_assert_uint_eq(moat_ruleset_hits(rs)[i], 0);
    moat_ruleset_destroy(rs);
    free(blob);
}
END_TEST

/* No rule and no default speaks of a family or direction that does not exist. */
START_TEST(drops_what_it_does_not_know)
{
    struct blob *b = blob_create();
    struct moat_flow f = flow(MOAT_TO_VM, "10.0.0.1", "10.0.0.2", 6, 1, 2);
    struct moat_ruleset *rs;
    struct moat_match m;
    uint8_t *blob;

    blob_default(b, MOAT_ALLOW, 0);
    blob_rule(b, MOAT_ALLOW, "all");
    rs = finish(b, &blob);
    for (unsigned v = 0; v < 256; v++) {
        bool known = v == MOAT_FAM_IP4 || v == MOAT_FAM_IP6 || v == MOAT_FAM_ARP;
        struct moat_flow g = f;

        g.family = (uint8_t)v;
        moat_classify(rs, &g, 1, &m);
        ck_assert_uint_eq(m.verdict, known ? MOAT_ALLOW : MOAT_DROP);
        ck_assert_uint_eq(m.index, known ? 0 : 1);
        g = f;
        g.dir = (uint8_t)v;
        moat_classify(rs, &g, 1, &m);
        ck_assert_uint_eq(m.verdict, v < 2 ? MOAT_ALLOW : MOAT_DROP);
        ck_assert_uint_eq(m.index, v < 2 ? 0 : 1);
    }
    moat_ruleset_destroy(rs);
    free(blob);
}
END_TEST

/* Every port against ranges whose edges are more than there are buckets. */
START_TEST(knows_every_port)
{
    struct blob *b = blob_create();
    struct moat_flow f = flow(MOAT_TO_VM, "10.0.0.1", "10.0.0.2", 6, 1, 0);
    struct moat_ruleset *rs;
    struct moat_match m;
    uint8_t *blob;

    for (unsigned i = 0; i < 300; i++) {
        struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "it");

        r->dport_lo = (uint16_t)(65535 - i * 200);
        r->dport_hi = (uint16_t)(r->dport_lo + (i ? i % 190 : 0));
    }
    rs = finish(b, &blob);
    for (unsigned port = 0; port < 65536; port++) {
        struct moat_match want;

        f.dport = (uint16_t)port;
        want = plain(blob, &f);
        moat_classify(rs, &f, 1, &m);
        ck_assert_msg(m.index == want.index, "port %u: %u, want %u", port, m.index, want.index);
    }
    moat_ruleset_destroy(rs);
    free(blob);
}
END_TEST

/* Partitions of 1 to 500 intervals: every edge and its neighbours, in every search. */
START_TEST(knows_every_edge_of_a_partition)
{
    for (unsigned n = 1; n <= 500; n += n < 70 ? 1 : 53) {
        struct blob *b = blob_create();
        struct moat_ruleset *rs;
        uint8_t *blob;

        for (unsigned i = 0; i < n; i++) {
            struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "it");
            uint8_t v6[16] = {0};

            /* Two edges per upper half: they differ from its top or in the lower half only. */
            memset(v6 + i / 2 % 8, (int)(i / 2), 8 - i / 2 % 8);
            v6[0] = (uint8_t)(i / 2);
            if (i % 2)
                memset(v6 + 8, (int)(0x80 + i), 8);
            blob_v4(b, i == n - 1 && i ? UINT32_MAX : i * 8000001u, (uint16_t)i);
            blob_v6(b, v6, (uint16_t)i);
            r->peer_set = blob_set(b);
            blob_set_add(b, r->peer_set, (uint16_t)i);
        }
        rs = finish(b, &blob);
        for (unsigned i = 0; i < n; i++) {
            const struct moat_ruleset_head *h = (const void *)blob;
            const struct moat_ruleset_body *body = moat_ruleset_body(h);
            uint32_t edge = ((const uint32_t *)moat_ruleset_at(h, body->v4_start_off))[i];
            const uint8_t *edge6 = (const uint8_t *)moat_ruleset_at(h, body->v6_start_off) + i * 16;

            for (int by = -1; by <= 1; by++) {
                struct moat_flow f[2] = {{.family = IP4, .proto = 6}, {.family = IP6, .proto = 6}};
                uint32_t be = htonl(edge + (uint32_t)by);
                struct moat_match m[2];

                memcpy(f[0].remote, &be, 4);
                memcpy(f[1].remote, edge6, 16);
                for (int k = 15; by && k >= 0; k--) {
                    f[1].remote[k] = (uint8_t)(f[1].remote[k] + by);
                    if (f[1].remote[k] != (by > 0 ? 0 : 0xff))
                        break;
                }
                moat_classify(rs, f, 2, m);
                ck_assert_uint_eq(m[0].index, plain(blob, &f[0]).index);
                ck_assert_uint_eq(m[1].index, plain(blob, &f[1]).index);
                if (!by) {
                    ck_assert_uint_eq(m[0].index, i);
                    ck_assert_uint_eq(m[1].index, i);
                }
            }
        }
        moat_ruleset_destroy(rs);
        free(blob);
    }
}
END_TEST

/* --- Random rulesets ----------------------------------------------------------------------- */

#define N_PAIRS TRIALS(1500000)
#define FLOWS_PER_RULESET 1024

static const uint8_t protos[] = {6, 6, 6, 17, 17, 1, 58, 132, 136, 47, 0, 255};

/* A world of addresses that is small enough for packets to hit its edges. */
static void random_partitions(struct blob *b, uint32_t n_classes)
{
    uint32_t n4 = 1 + below(one_in(4) ? 300 : 20), n6 = 1 + below(one_in(4) ? 300 : 20), at = 0;
    uint8_t v6[16] = {0};

    for (uint32_t i = 0; i < n4; i++) {
        blob_v4(b, at, (uint16_t)below(n_classes));
        at += 1 + below(one_in(3) ? 1000000 : 3);
    }
    for (uint32_t i = 0; i < n6; i++) {
        uint32_t k = 15 - below(one_in(3) ? 16 : 2);

        blob_v6(b, v6, (uint16_t)below(n_classes));
        while (++v6[k] == 0 && k > 0)
            k--;
        if (k == 0 && v6[0] == 0)
            break; /* wrapped */
    }
    blob_classes(b, n_classes);
}

static uint16_t some_port(uint32_t world)
{
    return (uint16_t)(one_in(20) ? next_random() : below(world));
}

static void random_rule(struct blob *b, uint32_t n_sets, uint32_t world, unsigned narrow)
{
    static const uint8_t actions[] = {MOAT_ALLOW, MOAT_DROP, MOAT_REJECT, MOAT_LOG, MOAT_NEXT_TIER};
    struct moat_rule *r = blob_rule(b, actions[below(5)], one_in(2) ? "rule" : "");

    if (one_in(2))
        r->dirs = (uint8_t)(1 + below(3));
    if (one_in(2))
        r->families = (uint8_t)(1 + below(7));
    r->flags = (uint8_t)below(4);
    if (!one_in(narrow))
        r->proto = protos[below(sizeof protos)];
    if (!one_in(narrow)) {
        r->dport_lo = r->dport_hi = some_port(world);
        if (one_in(2))
            r->dport_hi = (uint16_t)(r->dport_lo + below(65536u - r->dport_lo));
    }
    if (one_in(4)) {
        r->sport_lo = r->sport_hi = some_port(world);
        if (one_in(2))
            r->sport_hi = (uint16_t)(r->sport_lo + below(65536u - r->sport_lo));
    }
    if (n_sets && !one_in(narrow))
        r->peer_set = below(n_sets);
    if (n_sets && one_in(4))
        r->local_set = below(n_sets);
}

static void random_skips(uint8_t *blob, size_t len)
{
    const struct moat_ruleset_body *body = moat_ruleset_body((const void *)blob);
    struct moat_rule *rules = (void *)(blob + body->rules_off);

    for (uint32_t i = 0; i < body->n_rules; i++)
        if (rules[i].action == MOAT_NEXT_TIER)
            rules[i].skip_to =
                i + 1 + below(one_in(2) ? 1 + (body->n_rules - i) / 20 : body->n_rules - i);
    blob_seal(blob, len);
}

static uint8_t *random_blob(uint32_t world, size_t *len)
{
    static const uint16_t sizes[] = {1, 2, 10, 63, 64, 65, 130, 300, 1500};
    static const uint32_t classes[] = {1, 2, 7, 63, 64, 65, 200, 700};
    static const uint8_t verdicts[] = {MOAT_ALLOW, MOAT_DROP, MOAT_REJECT};
    uint32_t n = below(1 + sizes[below(sizeof sizes / sizeof sizes[0])]), n_sets = below(12);
    uint32_t n_classes = classes[below(sizeof classes / sizeof classes[0])];
    struct blob *b = blob_create();
    unsigned narrow = 2 + below(12);
    uint8_t *blob;

    blob_default(b, verdicts[below(3)], (uint8_t)below(4));
    random_partitions(b, n_classes);
    for (uint32_t i = 0; i < n_sets; i++) {
        uint32_t set = blob_set(b);

        for (uint32_t k = below(one_in(2) ? 4 : n_classes + 1); k > 0; k--)
            blob_set_add(b, set, (uint16_t)below(n_classes));
    }
    for (uint32_t i = 0; i < n; i++)
        random_rule(b, n_sets, world, narrow);
    blob = blob_emit(b, len);
    blob_destroy(b);
    random_skips(blob, *len);
    return blob;
}

/* An edge of the partition, or next to one. */
static void random_address(const struct moat_ruleset_head *h, uint8_t family, uint8_t out[16])
{
    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    unsigned width = family == MOAT_FAM_IP6 ? 16 : 4;

    memset(out, 0, 16);
    if (family == MOAT_FAM_IP6) {
        memcpy(out, (const uint8_t *)moat_ruleset_at(h, b->v6_start_off) + below(b->n_v6) * 16, 16);
    } else {
        uint32_t be =
            htonl(((const uint32_t *)moat_ruleset_at(h, b->v4_start_off))[below(b->n_v4)]);

        memcpy(out, &be, 4);
    }
    if (one_in(3))
        out[width - 1]++;
    if (one_in(3))
        out[width - 1]--;
    if (one_in(10))
        out[below(width)] = (uint8_t)next_random();
}

static struct moat_flow random_flow(const struct moat_ruleset_head *h, uint32_t world)
{
    static const uint8_t families[] = {IP4, IP4, IP4, IP6, IP6, IP6, ARP};
    struct moat_flow f = {.dir = (uint8_t)below(2), .family = families[below(7)]};

    random_address(h, f.family, f.local);
    random_address(h, f.family, f.remote);
    if (f.family == ARP)
        return f;
    f.proto = protos[below(sizeof protos)];
    f.sport = some_port(world);
    f.dport = some_port(world);
    return f;
}

static void compare(const uint8_t *blob, const struct moat_ruleset *rs, const struct moat_flow *f,
                    unsigned n, uint64_t at)
{
    struct moat_match m[BURST];

    moat_classify(rs, f, n, m);
    for (unsigned i = 0; i < n; i++) {
        struct moat_match want = plain(blob, &f[i]);

        ck_assert_msg(!memcmp(&want, &m[i], sizeof want),
                      "pair %" PRIu64 ": verdict %u index %u logged %u loose %u log_rule %u, "
                      "want verdict %u index %u logged %u loose %u log_rule %u",
                      at + i, m[i].verdict, m[i].index, m[i].logged, m[i].loose, m[i].log_rule,
                      want.verdict, want.index, want.logged, want.loose, want.log_rule);
    }
}

START_TEST(agrees_with_the_plain_reader)
{
    uint64_t decided = 0, pairs = 0;

    seed(20240607);
    while (pairs < N_PAIRS) {
        static const uint32_t worlds[] = {3, 20, 500, 65536};
        uint32_t world = worlds[below(4)];
        struct moat_ruleset *rs;
        char err[160];
        size_t len;
        uint8_t *blob = random_blob(world, &len);
        uint32_t n_rules = moat_ruleset_body((void *)blob)->n_rules;

        ck_assert_msg(!moat_ruleset_check(blob, len, err, sizeof err), "%s", err);
        rs = moat_ruleset_create(blob);
        for (unsigned k = 0; k < FLOWS_PER_RULESET / BURST; k++) {
            struct moat_flow f[BURST];

            for (unsigned i = 0; i < BURST; i++) {
                f[i] = random_flow((void *)blob, world);
                decided += plain(blob, &f[i]).index < n_rules;
            }
            compare(blob, rs, f, BURST, pairs);
            pairs += BURST;
        }
        moat_ruleset_destroy(rs);
        free(blob);
    }
    /* Neither half of the outcomes may be rare, or little is shown. */
    ck_assert_uint_gt(decided, pairs / 4);
    ck_assert_uint_lt(decided, pairs * 19 / 20);
}
END_TEST

/* --- Long lists ------------------------------------------------------------------------- */

/* Rules that only log or send on, in the middle of many: the trees are walked again from there. */
static void scatter_actions(uint8_t *blob, size_t len)
{
    const struct moat_ruleset_body *body = moat_ruleset_body((const void *)blob);
    struct moat_rule *rules = (void *)(blob + body->rules_off);

    for (uint32_t i = 0; i + 1 < body->n_rules; i++) {
        if (one_in(4))
            rules[i].action = one_in(2) ? MOAT_LOG : MOAT_NEXT_TIER;
        if (rules[i].action == MOAT_NEXT_TIER)
            rules[i].skip_to = i + 1 + below(1 + (body->n_rules - i) / 8);
        rules[i].flags = (uint8_t)below(4);
        if (one_in(10))
            rules[i].families |= MOAT_RULE_IP6 | MOAT_RULE_ARP;
    }
    blob_seal(blob, len);
}

static const uint32_t long_sizes[] = {200, 1000, 5000, 20000};

#define N_LONG_ROWS (N_RULES_KINDS * 4 * 2)

START_TEST(agrees_with_the_plain_reader_on_long_lists)
{
    uint32_t n = long_sizes[_i / 2 % 4], n_flows = TRIALS(n > 10000 ? 10 : 30) * BURST;
    struct rules *g = rules_create((enum rules_kind)(_i / 8), n, 7 + (unsigned)_i);
    struct moat_flow *f = calloc(n_flows, sizeof *f);
    struct moat_ruleset *rs;
    uint32_t trees = 0;
    char err[160];
    size_t len;
    uint8_t *blob = rules_blob(g, &len);

    seed(100 + (unsigned)_i);
    if (_i % 2)
        scatter_actions(blob, len);
    ck_assert_msg(!moat_ruleset_check(blob, len, err, sizeof err), "%s", err);
    rs = moat_ruleset_create(blob);
    ck_assert_ptr_nonnull(rs);
    for (unsigned l = 0; l < N_LISTS; l++)
        trees += rs->lists[l].trees.n_trees;
    ck_assert_uint_gt(trees, 0);
    ck_assert_uint_le(forest_size(&rs->forest), 16 * len + (1u << 20)); /* growth in steps of two */
    rules_trace(g, f, n_flows);
    for (uint32_t i = 0; i < n_flows; i += BURST)
        compare(blob, rs, f + i, BURST, i);
    moat_ruleset_destroy(rs);
    free(blob);
    free(f);
    rules_destroy(g);
}
END_TEST

/* Sets of every other class, in all rules: whatever the index makes of it, the answer is right. */
START_TEST(agrees_where_no_cut_helps)
{
    struct blob *b = blob_create();
    struct moat_ruleset *rs;
    uint8_t *blob;

    seed(5);
    for (uint32_t i = 0; i < 4000; i++)
        blob_v4(b, i << 12, (uint16_t)i);
    for (uint32_t s = 0; s < 64; s++) {
        uint32_t set = blob_set(b);

        for (uint32_t c = s % 3; c < 4000; c += 2 + s % 5)
            blob_set_add(b, set, (uint16_t)c);
    }
    for (uint32_t i = 0; i < 3000; i++) {
        struct moat_rule *r = blob_rule(b, one_in(3) ? MOAT_LOG : MOAT_ALLOW, "");

        r->peer_set = below(64);
        r->local_set = below(64);
        r->sport_lo = (uint16_t)below(60000);
        r->dport_lo = (uint16_t)(60000 + below(5000));
    }
    rs = finish(b, &blob);
    for (uint32_t i = 0; i < 64; i++) {
        struct moat_flow f[BURST];

        for (unsigned k = 0; k < BURST; k++)
            f[k] = random_flow((void *)blob, 65536);
        compare(blob, rs, f, BURST, i * BURST);
    }
    moat_ruleset_destroy(rs);
    free(blob);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("classify");
    TCase *t = tcase_create("classify");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, matches_as_the_row_says, 0, N_MATCH_ROWS);
    tcase_add_loop_test(t, decides_as_the_row_says, 0, N_LIST_ROWS);
    tcase_add_test(t, judges_a_burst_each_for_itself);
    tcase_add_test(t, drops_what_it_does_not_know);
    tcase_add_test(t, knows_every_port);
    tcase_add_test(t, knows_every_edge_of_a_partition);
    tcase_add_test(t, agrees_with_the_plain_reader);
    tcase_add_loop_test(t, agrees_with_the_plain_reader_on_long_lists, 0, N_LONG_ROWS);
    tcase_add_test(t, agrees_where_no_cut_helps);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
