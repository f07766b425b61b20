/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/ruleset_walk.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static bool section(uint32_t off, uint64_t size, size_t len)
{
    return off % 8 == 0 &&
           off >= sizeof(struct moat_ruleset_head) + sizeof(struct moat_ruleset_body) &&
           off <= len && size <= len - off;
}

static const char *check_sums(const uint8_t *blob, size_t len)
{
    static uint8_t copy[MOAT_RULESET_MAX_SIZE];
    const struct moat_ruleset_head *h = (const void *)blob;
    XXH128_canonical_t digest;
    uint32_t zero = 0;

    memcpy(copy, blob, len);
    memcpy(copy + offsetof(struct moat_ruleset_head, checksum), &zero, sizeof zero);
    if (XXH32(copy, len, 0) != h->checksum)
        return "checksum";
    XXH128_canonicalFromHash(&digest, XXH3_128bits(blob + sizeof *h, len - sizeof *h));
    return memcmp(digest.digest, h->digest, sizeof h->digest) ? "digest" : NULL;
}

static const char *check_rule(const struct moat_ruleset_body *b, const struct moat_rule *r,
                              const struct moat_rule *before, uint32_t index, const char *strings)
{
    if (!r->dirs || r->dirs > 3 || !r->families || r->families > 7)
        return "rule dirs, families";
    if (r->action > MOAT_LOG || r->flags > 3)
        return "rule action, flags";
    if (r->proto > 255 && r->proto != MOAT_PROTO_ANY)
        return "rule proto";
    if (r->sport_lo > r->sport_hi || r->dport_lo > r->dport_hi)
        return "rule ports";
    if ((r->peer_set >= b->n_sets && r->peer_set != MOAT_SET_ANY) ||
        (r->local_set >= b->n_sets && r->local_set != MOAT_SET_ANY))
        return "rule sets";
    if (r->id == 0 || (before && (r->id < before->id || r->tier < before->tier)))
        return "rule order";
    if (r->action == MOAT_NEXT_TIER ? r->skip_to <= index || r->skip_to > b->n_rules
                                    : r->skip_to != 0)
        return "rule skip";
    if (r->name >= b->strings_len || !strings[r->name])
        return "rule name";
    return NULL;
}

static const char *check_partitions(const uint8_t *blob, const struct moat_ruleset_body *b)
{
    static const uint8_t zero[16];
    const uint32_t *v4 = (const void *)(blob + b->v4_start_off);
    const uint16_t *c4 = (const void *)(blob + b->v4_class_off);
    const uint8_t *v6 = blob + b->v6_start_off;
    const uint16_t *c6 = (const void *)(blob + b->v6_class_off);

    if (!b->n_v4 || !b->n_v6 || v4[0] != 0 || memcmp(v6, zero, 16))
        return "partition does not start at zero";
    for (uint32_t i = 0; i < b->n_v4; i++)
        if (c4[i] >= b->n_classes || (i && v4[i] <= v4[i - 1]) || (i && c4[i] == c4[i - 1]))
            return "IPv4 partition";
    for (uint32_t i = 0; i < b->n_v6; i++)
        if (c6[i] >= b->n_classes || (i && memcmp(v6 + 16 * i, v6 + 16 * i - 16, 16) <= 0) ||
            (i && c6[i] == c6[i - 1]))
            return "IPv6 partition";
    return NULL;
}

const char *moat_walk_check(const uint8_t *blob, size_t len)
{
    const struct moat_ruleset_head *h = (const void *)blob;
    if (len < sizeof *h + sizeof(struct moat_ruleset_body) || len > MOAT_RULESET_MAX_SIZE)
        return "size";
    if (h->magic != MOAT_RULESET_MAGIC || h->version != MOAT_RULESET_VERSION ||
        h->head_size != sizeof *h || h->size != len)
        return "head";
    const char *bad = check_sums(blob, len);
    if (bad)
        return bad;

    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    if (!section(b->rules_off, (uint64_t)b->n_rules * sizeof(struct moat_rule), len) ||
        !section(b->sets_off, (uint64_t)b->n_sets * b->set_words * 8, len) ||
        !section(b->v4_start_off, (uint64_t)b->n_v4 * 4, len) ||
        !section(b->v4_class_off, (uint64_t)b->n_v4 * 2, len) ||
        !section(b->v6_start_off, (uint64_t)b->n_v6 * 16, len) ||
        !section(b->v6_class_off, (uint64_t)b->n_v6 * 2, len) ||
        !section(b->strings_off, b->strings_len, len))
        return "section";
    if (!b->n_classes || b->n_classes > 65536 || b->set_words != (b->n_classes + 63) / 64)
        return "classes";
    if (b->default_action > MOAT_REJECT || b->default_flags & ~MOAT_RULE_F_LOG)
        return "default";
    const char *strings = (const char *)blob + b->strings_off;
    if (!b->strings_len || strings[b->strings_len - 1])
        return "strings";
    const struct moat_rule *rules = (const void *)(blob + b->rules_off);
    for (uint32_t i = 0; i < b->n_rules; i++)
        if ((bad = check_rule(b, &rules[i], i ? &rules[i - 1] : NULL, i, strings)))
            return bad;
    return check_partitions(blob, b);
}

static uint16_t class_of(const uint8_t *blob, const struct moat_ruleset_body *b, unsigned family,
                         const uint8_t *addr)
{
    if (family == MOAT_FAM_IP6) {
        const uint8_t *start = blob + b->v6_start_off;
        uint32_t i = b->n_v6 - 1;
        while (memcmp(addr, start + 16 * (size_t)i, 16) < 0)
            i--;
        return ((const uint16_t *)(blob + b->v6_class_off))[i];
    }
    const uint32_t *start = (const void *)(blob + b->v4_start_off);
    uint32_t a = (uint32_t)addr[0] << 24 | addr[1] << 16 | addr[2] << 8 | addr[3];
    uint32_t i = b->n_v4 - 1;
    while (a < start[i])
        i--;
    return ((const uint16_t *)(blob + b->v4_class_off))[i];
}

static bool in_set(const uint8_t *blob, const struct moat_ruleset_body *b, uint32_t set,
                   uint16_t class)
{
    const uint64_t *sets = (const void *)(blob + b->sets_off);
    return set == MOAT_SET_ANY ||
           (sets[(size_t)set * b->set_words + class / 64] >> (class % 64) & 1);
}

void moat_walk(const uint8_t *blob, const struct moat_flow *f, struct moat_decision *d)
{
    const struct moat_ruleset_body *b = moat_ruleset_body((const void *)blob);
    const struct moat_rule *rules = (const void *)(blob + b->rules_off);
    uint8_t family = f->family == MOAT_FAM_IP4   ? MOAT_RULE_IP4
                     : f->family == MOAT_FAM_IP6 ? MOAT_RULE_IP6
                                                 : MOAT_RULE_ARP;
    uint16_t remote = class_of(blob, b, f->family, f->remote);
    uint16_t local = class_of(blob, b, f->family, f->local);
    struct moat_rule last = {.action = b->default_action, .flags = b->default_flags};

    *d = (struct moat_decision){0};
    for (uint32_t i = 0; i < b->n_rules;) {
        const struct moat_rule *r = &rules[i];
        if (!(r->dirs >> f->dir & 1) || !(r->families & family) ||
            (r->proto != MOAT_PROTO_ANY && r->proto != f->proto) || f->sport < r->sport_lo ||
            f->sport > r->sport_hi || f->dport < r->dport_lo || f->dport > r->dport_hi ||
            !in_set(blob, b, r->peer_set, remote) || !in_set(blob, b, r->local_set, local)) {
            i++;
        } else if (r->action == MOAT_NEXT_TIER) {
            i = r->skip_to;
        } else if (r->action == MOAT_LOG) {
            if (!d->logged)
                d->log_rule = r->id;
            d->logged = true;
            i++;
        } else {
            last = *r;
            break;
        }
    }
    d->verdict = last.action;
    d->rule = last.id;
    d->loose = last.flags & MOAT_RULE_F_LOOSE;
    if (last.flags & MOAT_RULE_F_LOG && !d->logged) {
        d->logged = true;
        d->log_rule = last.id;
    }
}
