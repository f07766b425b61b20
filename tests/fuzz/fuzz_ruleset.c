/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as a compiled ruleset, sums made right: what the check takes is matched by the fast
 * classifier and by a plain reader.
 *
 *   input: 2 bytes of choices, how many flows; the flows; the blob */

#include "datapath/classify.h"
#include "datapath/ruleset.h"
#include "policy/policy.h"
#include "tests/lib/blob.h"
#include "tests/lib/ruleset_walk.h"

#include "tests/fuzz/fuzz.h"

#define MAX_FLOWS 8

static void make_flow(struct choice *c, struct moat_flow *f)
{
    static const uint8_t families[3] = {MOAT_FAM_IP4, MOAT_FAM_IP6, MOAT_FAM_ARP};
    unsigned len;

    memset(f, 0, sizeof *f);
    f->dir = (uint8_t)choice_below(c, 2);
    f->family = families[choice_below(c, 3)];
    len = f->family == MOAT_FAM_IP6 ? 16 : 4;
    choice_take(c, f->local, len);
    choice_take(c, f->remote, len);
    if (f->family != MOAT_FAM_ARP) {
        f->proto = (uint8_t)choice_below(c, 256);
        f->sport = (uint16_t)choice_below(c, 65536);
        f->dport = (uint16_t)choice_below(c, 65536);
    }
}

static void compare(const struct moat_ruleset *rules, const uint8_t *blob,
                    const struct moat_flow *flows, unsigned n)
{
    struct moat_match match[MAX_FLOWS];

    moat_classify(rules, flows, n, match);
    for (unsigned i = 0; i < n; i++) {
        struct moat_decision d;

        moat_walk(blob, &flows[i], &d);
        HOLDS(match[i].verdict == d.verdict && match[i].rule == d.rule);
        HOLDS(!!match[i].logged == d.logged && !!match[i].loose == d.loose);
        HOLDS(!d.logged || match[i].log_rule == d.log_rule || match[i].rule == d.log_rule);
        HOLDS(match[i].index <= moat_ruleset_body((const void *)blob)->n_rules);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct moat_flow flows[MAX_FLOWS];
    struct choice c;
    char err[256] = "";
    unsigned how, n;
    uint8_t *blob;
    size_t len;
    int rc;

    choice_bytes(&c, input, size);
    how = choice_below(&c, 8);
    n = choice_below(&c, MAX_FLOWS + 1);
    for (unsigned i = 0; i < n; i++)
        make_flow(&c, &flows[i]);
    len = c.left;
    blob = fuzz_exact(c.p, len); /* malloc: aligned for anything */
    if (how < 6 && len >= sizeof(struct moat_ruleset_head)) {
        struct moat_ruleset_head *h = (void *)blob;

        h->magic = MOAT_RULESET_MAGIC;
        h->version = MOAT_RULESET_VERSION;
        h->head_size = sizeof *h;
        h->size = (uint32_t)len;
        blob_seal(blob, len);
    }
    rc = moat_ruleset_check(blob, len, err, sizeof err);
    HOLDS(rc == 0 || err[0]);
    if (!rc) {
        struct moat_ruleset *rules = moat_ruleset_create(blob);

        HOLDS(rules);
        compare(rules, blob, flows, n);
        moat_ruleset_destroy(rules);
    }
    free(blob);
    return 0;
}
