/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as policy text.  What parses prints, and the print parses and prints as itself; what
 * compiles is sound for both readers of rulesets, and they and the evaluator agree. */

#include "datapath/classify.h"
#include "datapath/ruleset.h"
#include "tests/lib/gen_policy.h"
#include "tests/lib/ruleset_walk.h"

#include "tests/fuzz/fuzz.h"

#define N_FLOWS 16

static struct moat_gen gen; /* its inventory only */

static void check_print(const struct moat_policy *p)
{
    char *text = moat_policy_print(p), *again;
    struct moat_policy *q;

    HOLDS(text);
    q = moat_policy_parse(text, strlen(text), "print", NULL);
    HOLDS(q);
    again = moat_policy_print(q);
    HOLDS(again && !strcmp(text, again));
    free(again);
    free(text);
    moat_policy_destroy(q);
}

static void check_compile(const struct moat_policy *p, unsigned vnic, struct moat_gen *flows)
{
    struct moat_ruleset *rules;
    struct moat_settings settings;
    char err[256];
    uint8_t *blob;
    size_t len;

    moat_settings_init(&settings);
    moat_policy_settings(p, gen.inv, moat_inventory_vm_of(gen.inv, vnic), &settings);
    if (moat_policy_compile(p, gen.inv, vnic, 1, &blob, &len, NULL))
        return;
    HOLDS(!moat_walk_check(blob, len) && !moat_ruleset_check(blob, len, err, sizeof err));
    rules = moat_ruleset_create(blob);
    HOLDS(rules);
    for (unsigned i = 0; i < N_FLOWS; i++) {
        struct moat_decision fast, slow;
        struct moat_match match;
        struct moat_flow flow;

        moat_gen_flow(flows, vnic, &flow);
        moat_walk(blob, &flow, &fast);
        moat_classify(rules, &flow, 1, &match);
        HOLDS(match.verdict == fast.verdict && match.rule == fast.rule);
        if (!settings.quarantine && !moat_policy_eval(p, gen.inv, vnic, &flow, &slow))
            HOLDS(slow.verdict == fast.verdict && slow.rule == fast.rule &&
                  slow.loose == fast.loose && slow.logged == fast.logged);
    }
    moat_ruleset_destroy(rules);
    free(blob);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct moat_diags *diags = moat_diags_create();
    struct moat_policy *p;
    struct moat_gen flows;
    char *said, *text;

    if (!gen.inv)
        moat_gen_case(7, &gen);
    flows = gen; /* the same packets for each input */
    text = fuzz_exact(input, size);
    p = moat_policy_parse(text, size, "fuzz", diags);
    HOLDS(p || moat_diags_errors(diags));
    if (p) {
        check_print(p);
        moat_policy_check(p, gen.inv, diags);
        for (unsigned i = 0; i < moat_inventory_n_vnics(gen.inv) && i < 3; i++)
            check_compile(p, i, &flows);
    }
    said = moat_diags_text(diags);
    HOLDS(said);
    free(said);
    moat_policy_destroy(p);
    moat_diags_destroy(diags);
    free(text);
    return 0;
}
