/* SPDX-License-Identifier: Apache-2.0 */

/* The whole way of a policy, against its shortest reading: text -> tree -> compiled ruleset
 * -> check -> index -> classifier must judge each packet as the evaluator does, which asks
 * the rules as written.  Neither side shares code with the other. */

#include "datapath/classify.h"

#include <arpa/inet.h>
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "policy/policy.h"
#include "tests/lib/gen_policy.h"
#include "tests/lib/ruleset_walk.h"
#include "tests/lib/trials.h"

#define N_PAIRS TRIALS(1200000)
#define BURSTS 16 /* per vNIC */
#define BURST 32

static uint64_t pairs, by_rule, by_default, logged, loose, quarantined, verdicts[3];
static uint32_t most_rules;

static const char *flow_text(const struct moat_flow *f, char *out, size_t size)
{
    int af = f->family == MOAT_FAM_IP6 ? AF_INET6 : AF_INET;
    char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];

    inet_ntop(af, f->local, local, sizeof local);
    inet_ntop(af, f->remote, remote, sizeof remote);
    snprintf(out, size, "dir %u family %u proto %u sport %u dport %u local %s remote %s", f->dir,
             f->family, f->proto, f->sport, f->dport, local, remote);
    return out;
}

static void count(const struct moat_gen *g, unsigned vnic, const struct moat_match *m)
{
    pairs++;
    quarantined += g->policy && g->quarantined[moat_inventory_vm_of(g->inv, vnic)];
    by_rule += m->rule != 0;
    by_default += m->rule == 0;
    logged += m->logged;
    loose += m->loose;
    verdicts[m->verdict]++;
}

static void compare(const struct moat_gen *g, unsigned vnic, const uint8_t *blob,
                    const struct moat_flow *f, const struct moat_match *m)
{
    const struct moat_ruleset_head *h = (const void *)blob;
    const struct moat_ruleset_body *body = moat_ruleset_body(h);
    const struct moat_rule *rules = moat_ruleset_at(h, body->rules_off);
    struct moat_decision want, walk;
    char text[256];

    ck_assert_int_eq(moat_policy_eval(g->policy, g->inv, vnic, f, &want), 0);
    moat_walk(blob, f, &walk);
    if (m->verdict == want.verdict && m->logged == want.logged && m->loose == want.loose &&
        m->rule == want.rule && m->log_rule == want.log_rule &&
        m->rule == (m->index < body->n_rules ? rules[m->index].id : 0))
        return;
    ck_abort_msg("case %" PRIu64 ", vNIC %u, %s\n"
                 "              verdict logged loose rule log_rule\n"
                 "  classifier: %u %u %u %u %u (index %u of %u)\n"
                 "  evaluator:  %u %u %u %u %u\n"
                 "  walk:       %u %u %u %u %u\n%s",
                 g->seed, vnic, flow_text(f, text, sizeof text), m->verdict, m->logged, m->loose,
                 m->rule, m->log_rule, m->index, body->n_rules, want.verdict, want.logged,
                 want.loose, want.rule, want.log_rule, walk.verdict, walk.logged, walk.loose,
                 walk.rule, walk.log_rule, g->text ? g->text : "(no policy)");
}

static void try_vnic(struct moat_gen *g, unsigned vnic)
{
    struct moat_match m[BURST];
    struct moat_flow f[BURST];
    struct moat_ruleset *rs;
    char err[160];
    uint8_t *blob;
    size_t len;
    int rc = moat_policy_compile(g->policy, g->inv, vnic, g->seed, &blob, &len, NULL);

    ck_assert_msg(!rc, "case %" PRIu64 ", vNIC %u: does not compile: %d", g->seed, vnic, rc);
    ck_assert_msg(!moat_ruleset_check(blob, len, err, sizeof err), "case %" PRIu64 ", vNIC %u: %s",
                  g->seed, vnic, err);
    rs = moat_ruleset_create(blob);
    ck_assert_ptr_nonnull(rs);
    ck_assert_uint_eq(moat_ruleset_head(rs)->generation, g->seed);
    if (most_rules < moat_ruleset_body(moat_ruleset_head(rs))->n_rules)
        most_rules = moat_ruleset_body(moat_ruleset_head(rs))->n_rules;
    for (unsigned k = 0; k < BURSTS; k++) {
        for (unsigned i = 0; i < BURST; i++)
            moat_gen_flow(g, vnic, &f[i]);
        moat_classify(rs, f, BURST, m);
        for (unsigned i = 0; i < BURST; i++) {
            compare(g, vnic, blob, &f[i], &m[i]);
            count(g, vnic, &m[i]);
        }
    }
    moat_ruleset_destroy(rs);
    free(blob);
}

START_TEST(agrees_with_the_evaluator)
{
    uint64_t first = moat_gen_seed(1), seed = first;

    for (; pairs < N_PAIRS; seed++) {
        struct moat_gen g;

        moat_gen_case(seed, &g);
        ck_assert_msg(g.policy || !g.text, "case %" PRIu64 " does not parse:\n%s", seed, g.text);
        for (unsigned v = 0; v < moat_inventory_n_vnics(g.inv); v++)
            try_vnic(&g, v);
        moat_gen_destroy(&g);
    }
    fprintf(stderr,
            "%" PRIu64 " pairs of %" PRIu64 " cases: %" PRIu64 " by a rule, %" PRIu64
            " by default, %" PRIu64 " logged, %" PRIu64 " loose, %" PRIu64
            " in quarantine by an operator; at most %u rules\n",
            pairs, seed - first, by_rule, by_default, logged, loose, quarantined, most_rules);
    /* Each outcome must be common, or little is shown. */
    ck_assert_uint_gt(by_rule, pairs / 10);
    ck_assert_uint_gt(by_default, pairs / 10);
    ck_assert_uint_gt(logged, pairs / 50);
    ck_assert_uint_gt(loose, pairs / 500);
    ck_assert_uint_gt(quarantined, pairs / 50);
    for (unsigned i = 0; i < 3; i++)
        ck_assert_uint_gt(verdicts[i], pairs / 50);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("oracle");
    TCase *t = tcase_create("oracle");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 240); /* a sanitizer's */
    tcase_add_test(t, agrees_with_the_evaluator);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
