/* SPDX-License-Identifier: Apache-2.0 */

/* Rulesets: their shape, and that they say what the oracle says. */

#include "test_policy.h"

#include <errno.h>

#include "tests/lib/gen_policy.h"
#include "tests/lib/ruleset_walk.h"

#define P "policy \"p\" version 1\n"

struct blob {
    uint8_t *p;
    size_t len;
    const struct moat_ruleset_head *head;
    const struct moat_ruleset_body *body;
    const struct moat_rule *rules;
};

static struct blob compile(const char *text, const struct moat_inventory *inv, unsigned vnic,
                           uint64_t generation)
{
    struct blob b;
    struct moat_policy *p = text ? must_parse(text) : NULL;
    ck_assert_int_eq(moat_policy_compile(p, inv, vnic, generation, &b.p, &b.len, NULL), 0);
    ck_assert_ptr_null(moat_walk_check(b.p, b.len));
    b.head = (const void *)b.p;
    b.body = moat_ruleset_body(b.head);
    b.rules = moat_ruleset_at(b.head, b.body->rules_off);
    moat_policy_destroy(p);
    return b;
}

static const char *name(const struct blob *b, unsigned i)
{
    return (const char *)b->p + b->body->strings_off + b->rules[i].name;
}

START_TEST(shape)
{
    struct moat_inventory *inv = shop();
    struct blob b = compile(P "tier a {\n"
                              "  allow from vm \"db\" to vm \"lone\"\n" /* not web1's concern */
                              "  rule \"ports\" allow from any to any service tcp 80, tcp 81-90, "
                              "tcp 85, udp 7, udp 9\n"
                              "  next-tier from any to vm \"web1\"\n"
                              "  drop from vm \"db\" to vm \"web1\"\n"
                              "}\n"
                              "default reject log\n",
                            inv, WEB1, 42);
    ck_assert_uint_eq(b.head->generation, 42);
    ck_assert_uint_eq(b.body->default_action, MOAT_REJECT);
    ck_assert_uint_eq(b.body->default_flags, MOAT_RULE_F_LOG);
    /* Rule 1 is left out; 2 holds both ways, with joined ports. */
    ck_assert_uint_eq(b.rules[0].id, 2);
    ck_assert_uint_eq(b.rules[0].dirs, MOAT_RULE_FROM_VM | MOAT_RULE_TO_VM);
    ck_assert_uint_eq(b.rules[0].dport_lo, 80);
    ck_assert_uint_eq(b.rules[0].dport_hi, 90);
    ck_assert_uint_eq(b.rules[0].peer_set, MOAT_SET_ANY);
    ck_assert_uint_eq(b.rules[1].id, 2);
    ck_assert_uint_eq(b.rules[1].proto, 17);
    ck_assert_uint_eq(b.rules[1].dport_hi, 7);
    ck_assert_str_eq(name(&b, 0), "ports");
    /* `any to web1`: from web1 to itself, and to it from anyone. */
    ck_assert_uint_eq(b.rules[3].id, 3);
    ck_assert_uint_eq(b.rules[3].dirs, MOAT_RULE_FROM_VM);
    ck_assert_uint_eq(b.rules[4].id, 3);
    ck_assert_uint_eq(b.rules[4].dirs, MOAT_RULE_TO_VM);
    ck_assert_uint_eq(b.rules[4].peer_set, MOAT_SET_ANY);
    ck_assert_str_eq(name(&b, 4), "a/5");
    /* The tier's last rule is number 4; the tier after it starts there. */
    ck_assert_uint_eq(b.rules[5].id, 4);
    ck_assert_uint_eq(b.rules[5].tier, 0);
    ck_assert_uint_eq(b.rules[6].tier, 1);
    ck_assert_uint_eq(b.rules[3].skip_to, 6);
    ck_assert_uint_eq(b.rules[4].skip_to, 6);
    free(b.p);
    moat_inventory_destroy(inv);
}
END_TEST

/* The digest is of what is enforced: neither the generation nor a VM elsewhere
 * changes it. */
START_TEST(digests)
{
    static const char one[] = P "tier a {\n allow from vm \"web2\" to vms\n}\n";
    static const char other[] = P "tier a {\n allow from vm \"db\" to vms\n}\n";
    struct moat_inventory *inv = shop();
    struct blob a = compile(one, inv, WEB1, 1), b = compile(one, inv, WEB1, 2);
    ck_assert_mem_eq(a.head->digest, b.head->digest, 16);
    ck_assert_uint_ne(a.head->checksum, b.head->checksum);
    struct blob c = compile(other, inv, WEB1, 1);
    ck_assert_mem_ne(a.head->digest, c.head->digest, 16);
    free(a.p);
    struct moat_addr addr;
    moat_addr_parse("10.0.0.77", &addr);
    moat_inventory_add_vnic(
        inv, &(struct moat_vnic_spec){
                 .id = "far", .vm = WEB2, .network = 1, .addrs = &addr, .n_addrs = 1});
    a = compile(one, inv, WEB1, 1);
    ck_assert_mem_eq(a.head->digest, b.head->digest, 16);
    free(a.p);
    moat_inventory_add_vnic(
        inv, &(struct moat_vnic_spec){
                 .id = "near", .vm = WEB2, .network = 0, .addrs = &addr, .n_addrs = 1});
    a = compile(one, inv, WEB1, 1);
    ck_assert_mem_ne(a.head->digest, b.head->digest, 16);
    free(a.p);
    free(b.p);
    free(c.p);
    moat_inventory_destroy(inv);
}
END_TEST

/* A VM may have a policy that comes to the base tier and a default of drop.  Putting it in
 * quarantine then judges no packet otherwise, but must be seen as a change. */
START_TEST(quarantine_has_its_own_digest)
{
    struct moat_inventory *free_vms = shop(), *inv = shop_quarantining(WEB1);
    static const char *const texts[] = {
        P "tier a {\n allow from vm \"web1\" to addresses 10.0.0.0/8 except any\n}\n",
        P "tier a {\n allow from any to any\n}\ndefault allow log\n",
        P "tier a {\n allow from any to any\n}\ntier base {\n}\n",
    };

    for (unsigned i = 0; i < 3; i++) {
        struct blob was = compile(texts[i], free_vms, WEB1, 1);
        struct blob is = compile(texts[i], inv, WEB1, 1);
        struct blob other = compile(texts[i], inv, WEB2, 1);
        ck_assert_int_ne(memcmp(was.head->digest, is.head->digest, 16), 0);
        ck_assert_uint_eq(is.body->default_action, MOAT_DROP);
        ck_assert_uint_eq(is.body->default_flags, 0);
        for (unsigned k = 0; k < is.body->n_rules; k++)
            ck_assert_uint_eq(is.rules[k].tier, 1); /* base */
        if (i == 0) {                               /* nothing else tells them apart */
            ck_assert_uint_eq(was.body->n_rules, is.body->n_rules);
            ck_assert_uint_eq(was.body->default_action, MOAT_DROP);
        }
        if (i == 2)
            ck_assert_uint_eq(is.body->n_rules, 0);
        /* Other VMs are not concerned. */
        struct blob before = compile(texts[i], free_vms, WEB2, 1);
        ck_assert_mem_eq(before.head->digest, other.head->digest, 16);
        free(before.p);
        free(was.p);
        free(is.p);
        free(other.p);
    }
    moat_inventory_destroy(free_vms);
    moat_inventory_destroy(inv);
}
END_TEST

START_TEST(too_large)
{
    struct moat_inventory *inv = shop();
    size_t size = 1 << 20, at = 0;
    char *text = malloc(size);
    at += (size_t)snprintf(text + at, size - at, P "tier a {\n");
    for (int i = 0; i < 8000; i++)
        at +=
            (size_t)snprintf(text + at, size - at, "allow from any to any service tcp %d\n", 2 * i);
    snprintf(text + at, size - at, "}\n");
    struct moat_policy *p = must_parse(text);
    struct moat_diags *ds = moat_diags_create();
    uint8_t *blob;
    size_t len;
    ck_assert_int_eq(moat_policy_compile(p, inv, WEB1, 1, &blob, &len, ds), -E2BIG);
    ck_assert_ptr_null(blob);
    ck_assert_uint_eq(moat_diags_errors(ds), 1);
    ck_assert_ptr_nonnull(strstr(moat_diags_get(ds, 0)->message, "the limit is 262144"));
    moat_diags_destroy(ds);
    moat_policy_destroy(p);
    free(text);
    moat_inventory_destroy(inv);
}
END_TEST

/* Many sets, each cutting many classes: refused, and soon. */
START_TEST(too_intricate)
{
    struct moat_inventory *inv = shop();
    size_t size = 1 << 20, at = 0;
    char *text = malloc(size);
    at += (size_t)snprintf(text + at, size - at, P "tier a {\n");
    for (int i = 0; i < 4000; i++)
        at += (size_t)snprintf(text + at, size - at,
                               "allow from addresses 10.%d.%d.0-11.%d.%d.255 to any\n", i / 256,
                               i % 256, i / 256, i % 256);
    snprintf(text + at, size - at, "}\n");
    struct moat_policy *p = must_parse(text);
    uint8_t *blob;
    size_t len;
    ck_assert_int_eq(moat_policy_compile(p, inv, WEB1, 1, &blob, &len, NULL), -E2BIG);
    moat_policy_destroy(p);
    free(text);
    moat_inventory_destroy(inv);
}
END_TEST

/* A group of groups of groups, each twice: 2^15 ways down, one look at each. */
START_TEST(no_blow_up)
{
    struct moat_inventory *inv = shop();
    char text[4096];
    size_t at = (size_t)snprintf(text, sizeof text,
                                 P "group g0 = addresses 10.0.0.11\n"
                                   "service s0 = tcp 80\n");
    for (int i = 1; i < 16; i++)
        at += (size_t)snprintf(text + at, sizeof text - at,
                               "group g%d = g%d, g%d, g%d except gateway\n"
                               "service s%d = s%d, s%d, s%d\n",
                               i, i - 1, i - 1, i - 1, i, i - 1, i - 1, i - 1);
    snprintf(text + at, sizeof text - at, "tier a {\n allow from g15 to vms service s15\n}\n");
    struct moat_policy *p = must_parse(text);
    struct moat_flow f = flow("to", "10.0.0.10", "10.0.0.11", 6, 1, 80);
    struct moat_decision d;
    for (int i = 0; i < 1000; i++) {
        ck_assert_int_eq(moat_policy_eval(p, inv, WEB1, &f, &d), 0);
        ck_assert_uint_eq(d.verdict, MOAT_ALLOW);
        uint8_t *blob;
        size_t len;
        ck_assert_int_eq(moat_policy_compile(p, inv, WEB1, 1, &blob, &len, NULL), 0);
        moat_walk(blob, &f, &d);
        ck_assert_uint_eq(d.rule, 1);
        free(blob);
    }
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

/* --- Oracle and ruleset on random cases --------------------------------------------------- */

#define FLOWS 100 /* per vNIC */

static struct {
    unsigned long pairs, verdicts[3], by_default, logged, loose, base, quarantine;
} seen;

static void explain(const struct moat_gen *g, unsigned vnic, const struct moat_flow *f,
                    const struct moat_decision *want, const struct moat_decision *got)
{
    char local[MOAT_ADDR_TEXT], remote[MOAT_ADDR_TEXT];
    struct moat_addr a = {f->family == 6 ? 6 : 4, f->family == 6 ? 128 : 32, {0}, {0}}, b = a;
    memcpy(a.addr, f->local, 16);
    memcpy(b.addr, f->remote, 16);
    moat_addr_format(&a, local);
    moat_addr_format(&b, remote);
    ck_abort_msg("seed %llu, vNIC %u, %s, family %u, local %s, remote %s, proto %u, ports %u %u:\n"
                 "oracle: verdict %u rule %u logged %u by %u loose %u\n"
                 "ruleset: verdict %u rule %u logged %u by %u loose %u\n%s",
                 (unsigned long long)g->seed, vnic, f->dir ? "to VM" : "from VM", f->family, local,
                 remote, f->proto, f->sport, f->dport, want->verdict, want->rule, want->logged,
                 want->log_rule, want->loose, got->verdict, got->rule, got->logged, got->log_rule,
                 got->loose, g->text ? g->text : "no policy");
}

static void count(const struct moat_gen *g, const struct moat_decision *d, bool quarantine)
{
    seen.pairs++;
    seen.verdicts[d->verdict]++;
    seen.by_default += d->rule == 0;
    seen.logged += d->logged;
    seen.loose += d->loose;
    seen.base += g->policy && d->rule && d->rule + 9 > moat_policy_n_rules(g->policy);
    seen.quarantine += quarantine;
}

static void one_vnic(struct moat_gen *g, unsigned vnic)
{
    uint8_t *blob;
    size_t len;
    struct moat_settings s;
    ck_assert_int_eq(moat_policy_compile(g->policy, g->inv, vnic, 1, &blob, &len, NULL), 0);
    ck_assert_int_eq(
        moat_policy_settings(g->policy, g->inv, moat_inventory_vm_of(g->inv, vnic), &s), 0);
    const char *bad = moat_walk_check(blob, len);
    ck_assert_msg(!bad, "seed %llu: %s", (unsigned long long)g->seed, bad);
    for (int i = 0; i < FLOWS; i++) {
        struct moat_flow f;
        struct moat_decision want, got;
        moat_gen_flow(g, vnic, &f);
        ck_assert_int_eq(moat_policy_eval(g->policy, g->inv, vnic, &f, &want), 0);
        moat_walk(blob, &f, &got);
        if (want.verdict != got.verdict || want.rule != got.rule || want.logged != got.logged ||
            want.log_rule != got.log_rule || want.loose != got.loose)
            explain(g, vnic, &f, &want, &got);
        count(g, &want, s.quarantine);
    }
    free(blob);
}

static void print_twice(const struct moat_gen *g)
{
    char *once = moat_policy_print(g->policy);
    struct moat_policy *again = must_parse(once);
    char *twice = moat_policy_print(again);
    ck_assert_str_eq(once, twice);
    moat_policy_destroy(again);
    free(once);
    free(twice);
}

START_TEST(oracle)
{
    const char *env = getenv("MOAT_PAIRS");
    unsigned long wanted = env ? strtoul(env, NULL, 0) : 1000000;
    uint64_t seed = moat_gen_seed(1);
    for (uint64_t i = 0; seen.pairs < wanted; i++) {
        struct moat_gen g;
        moat_gen_case(seed + i, &g);
        ck_assert_msg(!g.text == !g.policy, "seed %llu does not parse:\n%s",
                      (unsigned long long)g.seed, g.text);
        if (g.policy)
            print_twice(&g);
        for (unsigned vnic = 0; vnic < moat_inventory_n_vnics(g.inv); vnic++)
            one_vnic(&g, vnic);
        moat_gen_destroy(&g);
    }
    fprintf(stderr,
            "%lu pairs: drop %lu allow %lu reject %lu; default %lu, logged %lu, loose %lu, base "
            "%lu, quarantine %lu\n",
            seen.pairs, seen.verdicts[MOAT_DROP], seen.verdicts[MOAT_ALLOW],
            seen.verdicts[MOAT_REJECT], seen.by_default, seen.logged, seen.loose, seen.base,
            seen.quarantine);
    /* A generator that never meets a rule would agree, too. */
    const unsigned long parts[] = {seen.verdicts[MOAT_DROP],
                                   seen.verdicts[MOAT_ALLOW],
                                   seen.verdicts[MOAT_REJECT],
                                   seen.by_default,
                                   seen.logged,
                                   seen.loose,
                                   seen.base,
                                   seen.quarantine};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        ck_assert_uint_ge(parts[i], seen.pairs / 100);
}
END_TEST

TCase *emit_tests(void)
{
    TCase *tc = tcase_create("emit");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, shape);
    tcase_add_test(tc, digests);
    tcase_add_test(tc, quarantine_has_its_own_digest);
    tcase_add_test(tc, too_large);
    tcase_add_test(tc, too_intricate);
    tcase_add_test(tc, no_blow_up);
    tcase_add_test(tc, oracle);
    return tc;
}
