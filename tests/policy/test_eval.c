/* SPDX-License-Identifier: Apache-2.0 */

/* Verdicts by hand, each by the oracle and by a compiled ruleset. */

#include "test_policy.h"

#include <errno.h>

#include "tests/lib/ruleset_walk.h"

#define P "policy \"p\" version 1\n"

static const char policy[] =
    P "group web = vms labelled role=web\n" /* 2 */
      "group office = addresses 192.168.0.0/16, 2600::/16\n"
      "service http = tcp 80, tcp 8000-8099\n"
      "tier security {\n"
      "  drop log from addresses 192.168.9.0/24 to any\n"    /* rule 1 */
      "  next-tier from web to vm \"db\" service tcp 5432\n" /* 2 */
      "  reject from any to vm \"db\" service tcp 5432\n"    /* 3 */
      "  log from any to vm \"db\"\n"                        /* 4 */
      "}\n"
      "tier application {\n"
      "  allow from office to web service http\n"                   /* 5 */
      "  allow loose from web to vm \"db\"\n"                       /* 6 */
      "  allow log from gateway to web service icmp echo-request\n" /* 7 */
      "  allow from web to metadata service tcp 80\n"               /* 8 */
      "  drop from unknown to web\n"                                /* 9 */
      "  reject log from outside to web service udp 53\n"           /* 10 */
      "  allow from any to web service sctp, protocol 47\n"         /* 11 */
      "}\n"
      "default drop log\n"; /* base: 12 arp 13 nd 14 rs 15 ra 16 dhcp 17 dhcp 18 pmtu 19 20 */

enum { TCP = 6, UDP = 17, ICMP = 1, ICMP6 = 58, SCTP = 132, GRE = 47 };

static const struct {
    unsigned vnic;
    const char *dir, *local, *remote;
    unsigned proto, sport, dport;
    unsigned verdict, rule, logged, log_rule, loose;
} rows[] = {
    /* By address group and service, with the edges of ports and prefixes. */
    {WEB1, "to", "10.0.0.10", "192.168.0.0", TCP, 9, 80, MOAT_ALLOW, 5, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "192.168.255.255", TCP, 9, 8099, MOAT_ALLOW, 5, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "192.168.1.1", TCP, 9, 8100, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "10.0.0.10", "192.167.255.255", TCP, 9, 80, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "10.0.0.10", "192.168.1.1", UDP, 9, 80, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "2001:db8::10", "2600::1", TCP, 9, 80, MOAT_ALLOW, 5, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "192.168.9.7", TCP, 9, 80, MOAT_DROP, 1, 1, 1, 0},
    {DB, "to", "10.0.0.20", "192.168.1.1", TCP, 9, 80, MOAT_DROP, 0, 1, 4, 0},
    /* The reverse is not the rules' business. */
    {WEB1, "from", "10.0.0.10", "192.168.1.1", TCP, 80, 9, MOAT_DROP, 0, 1, 0, 0},
    /* Both ends of a rule; tiers. */
    {WEB1, "from", "10.0.0.10", "10.0.0.20", TCP, 9, 5432, MOAT_ALLOW, 6, 0, 0, 1},
    {DB, "to", "10.0.0.20", "10.0.0.10", TCP, 9, 5432, MOAT_ALLOW, 6, 0, 0, 1},
    {DB, "to", "10.0.0.100", "10.0.0.11", TCP, 9, 5432, MOAT_ALLOW, 6, 0, 0, 1},
    {DB, "to", "10.0.0.20", "10.0.0.30", TCP, 9, 5432, MOAT_REJECT, 3, 0, 0, 0},
    {LONE, "from", "10.0.0.30", "10.0.0.20", TCP, 9, 5432, MOAT_REJECT, 3, 0, 0, 0},
    {WEB1, "from", "10.0.0.10", "10.0.0.20", TCP, 9, 22, MOAT_ALLOW, 6, 1, 4, 1},
    {LONE, "from", "10.0.0.30", "10.0.0.20", TCP, 9, 22, MOAT_DROP, 0, 1, 4, 0},
    /* The local side is the VM, whatever address it uses. */
    {WEB1, "from", "10.9.9.9", "10.0.0.20", TCP, 9, 5432, MOAT_ALLOW, 6, 0, 0, 1},
    /* Identity is within the network: red's 10.0.0.20 is nobody, web1 is not there. */
    {RED, "from", "10.0.0.10", "10.0.0.20", TCP, 9, 5432, MOAT_DROP, 0, 1, 0, 0},
    /* Built-in groups. */
    {WEB1, "to", "10.0.0.10", "10.0.0.1", ICMP, 0, 8, MOAT_ALLOW, 7, 1, 7, 0},
    {WEB1, "to", "10.0.0.10", "10.0.0.3", ICMP, 0, 8, MOAT_DROP, 9, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "10.0.0.11", ICMP, 0, 8, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "from", "10.0.0.10", "169.254.169.254", TCP, 9, 80, MOAT_ALLOW, 8, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "8.8.8.8", UDP, 9, 53, MOAT_REJECT, 10, 1, 10, 0},
    {WEB1, "to", "10.0.0.10", "169.254.169.254", UDP, 9, 53, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "10.0.0.10", "224.0.0.1", UDP, 9, 53, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "10.0.0.10", "8.8.8.8", SCTP, 9, 53, MOAT_ALLOW, 11, 0, 0, 0},
    {WEB1, "to", "2001:db8::10", "2001:4860::8", GRE, 0, 0, MOAT_ALLOW, 11, 0, 0, 0},
    /* Base tier. */
    {WEB1, "arp", "10.0.0.10", "10.0.0.20", 0, 0, 0, MOAT_ALLOW, 12, 0, 0, 0},
    {WEB1, "from", "fe80::1:1", "ff02::1:ff00:20", ICMP6, 0, 135, MOAT_ALLOW, 13, 0, 0, 0},
    {WEB1, "to", "2001:db8::10", "fe80::1", ICMP6, 0, 136, MOAT_ALLOW, 13, 0, 0, 0},
    {WEB1, "from", "fe80::1:1", "ff02::2", ICMP6, 0, 133, MOAT_ALLOW, 14, 0, 0, 0},
    {WEB1, "to", "ff02::1", "fe80::1", ICMP6, 0, 134, MOAT_ALLOW, 15, 0, 0, 0},
    {WEB1, "to", "ff02::1", "fe80::2", ICMP6, 0, 134, MOAT_DROP, 9, 0, 0, 0},
    {DB, "to", "ff02::1", "fe80::2", ICMP6, 0, 134, MOAT_DROP, 0, 1, 4, 0},
    {WEB1, "from", "fe80::1:1", "ff02::1", ICMP6, 0, 134, MOAT_DROP, 0, 1, 0, 0},
    {RED, "to", "ff02::1", "fe80::1", ICMP6, 0, 134, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "from", "0.0.0.0", "255.255.255.255", UDP, 68, 67, MOAT_ALLOW, 16, 0, 0, 0},
    {WEB1, "from", "10.0.0.10", "10.0.0.2", UDP, 68, 67, MOAT_ALLOW, 16, 0, 0, 0},
    {WEB1, "from", "10.0.0.10", "10.0.0.3", UDP, 68, 67, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "from", "0.0.0.0", "255.255.255.255", UDP, 69, 67, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "255.255.255.255", "10.0.0.2", UDP, 67, 68, MOAT_ALLOW, 17, 0, 0, 0},
    {WEB1, "to", "255.255.255.255", "10.0.0.11", UDP, 67, 68, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "from", "10.0.0.10", "255.255.255.255", UDP, 67, 68, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "from", "fe80::1:1", "ff02::1:2", UDP, 546, 547, MOAT_ALLOW, 16, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "8.8.8.8", ICMP, 4, 3, MOAT_ALLOW, 18, 0, 0, 0},
    {WEB1, "to", "10.0.0.10", "8.8.8.8", ICMP, 1, 3, MOAT_DROP, 0, 1, 0, 0},
    {WEB1, "to", "2001:db8::10", "2001:4860::8", ICMP6, 0, 2, MOAT_ALLOW, 18, 0, 0, 0},
    {WEB1, "from", "10.0.0.10", "224.0.0.22", 2, 0, 0, MOAT_ALLOW, 19, 0, 0, 0},
    {WEB1, "to", "224.0.0.1", "10.0.0.1", 2, 0, 0, MOAT_ALLOW, 20, 0, 0, 0},
};

static void same(const struct moat_decision *a, const struct moat_decision *b)
{
    ck_assert_uint_eq(a->verdict, b->verdict);
    ck_assert_uint_eq(a->rule, b->rule);
    ck_assert_uint_eq(a->logged, b->logged);
    ck_assert_uint_eq(a->log_rule, b->log_rule);
    ck_assert_uint_eq(a->loose, b->loose);
}

static void judge(const struct moat_policy *p, const struct moat_inventory *inv, unsigned vnic,
                  const struct moat_flow *f, const struct moat_decision *want)
{
    struct moat_decision d;
    uint8_t *blob;
    size_t len;
    ck_assert_int_eq(moat_policy_eval(p, inv, vnic, f, &d), 0);
    same(&d, want);
    ck_assert_int_eq(moat_policy_compile(p, inv, vnic, 7, &blob, &len, NULL), 0);
    ck_assert_ptr_null(moat_walk_check(blob, len));
    moat_walk(blob, f, &d);
    same(&d, want);
    free(blob);
}

START_TEST(verdicts)
{
    struct moat_inventory *inv = shop();
    struct moat_policy *p = must_parse(policy);
    struct moat_flow f = flow(rows[_i].dir, rows[_i].local, rows[_i].remote, rows[_i].proto,
                              rows[_i].sport, rows[_i].dport);
    judge(p, inv, rows[_i].vnic, &f,
          &(struct moat_decision){(uint8_t)rows[_i].verdict, rows[_i].logged, rows[_i].loose,
                                  rows[_i].rule, rows[_i].log_rule});
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

START_TEST(quarantine)
{
    struct moat_inventory *inv = shop();
    struct moat_policy *p = must_parse(P "tier a {\n allow from outside to vm \"db\"\n}\n"
                                         "default allow log\n");
    struct moat_flow arp = flow("arp", "10.0.0.10", "10.0.0.20", 0, 0, 0);
    struct moat_flow tcp = flow("from", "10.0.0.10", "8.8.8.8", TCP, 9, 80);
    /* web1 is not named: the default does not hold for it, the base tier does. */
    judge(p, inv, WEB1, &arp, &(struct moat_decision){MOAT_ALLOW, 0, 0, 2, 0});
    judge(p, inv, WEB1, &tcp, &(struct moat_decision){MOAT_DROP, 0, 0, 0, 0});
    judge(p, inv, DB, &tcp, &(struct moat_decision){MOAT_ALLOW, 1, 0, 0, 0});
    judge(NULL, inv, DB, &tcp, &(struct moat_decision){MOAT_DROP, 0, 0, 0, 0});
    judge(NULL, inv, DB, &arp, &(struct moat_decision){MOAT_ALLOW, 0, 0, 1, 0});
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

START_TEST(own_base)
{
    struct moat_inventory *inv = shop();
    struct moat_policy *p = must_parse(P "tier a {\n allow from any to any service tcp\n}\n"
                                         "tier base {\n reject from any to any service arp\n}\n");
    struct moat_flow arp = flow("arp", "10.0.0.10", "10.0.0.20", 0, 0, 0);
    struct moat_flow nd = flow("from", "fe80::1", "ff02::1", ICMP6, 0, 135);
    judge(p, inv, WEB1, &arp, &(struct moat_decision){MOAT_REJECT, 0, 0, 2, 0});
    judge(p, inv, WEB1, &nd, &(struct moat_decision){MOAT_DROP, 0, 0, 0, 0});
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

/* The longest prefix owns an address; equal ones share it. */
START_TEST(owners)
{
    struct moat_inventory *inv = moat_inventory_create();
    static const char *const addrs[] = {"10.0.0.0/24", "10.0.0.128/25,10.0.0.5", "10.0.0.5",
                                        "10.1.0.0/16"};
    static const char *const names[] = {"wide", "half", "twin", "me"};
    moat_inventory_add_network(inv, &(struct moat_network_spec){.name = "n"});
    for (unsigned i = 0; i < 4; i++) {
        char uuid[40];
        struct moat_addr a[4];
        snprintf(uuid, sizeof uuid, "6c9f0c1e-0000-4000-8000-00000000000%u", i);
        moat_inventory_add_vm(inv, &(struct moat_vm_spec){.uuid = uuid, .name = names[i]});
        moat_inventory_add_vnic(
            inv, &(struct moat_vnic_spec){
                     .id = names[i], .vm = i, .addrs = a, .n_addrs = addr_list(addrs[i], a, 4)});
    }
    struct moat_policy *p = must_parse(P "tier a {\n"
                                         " log from vm \"twin\" to any\n"
                                         " allow from vm \"wide\" to any\n"
                                         " drop from vm \"half\" to any\n"
                                         "}\ndefault reject\n");
    static const struct {
        const char *remote;
        struct moat_decision want;
    } cases[] = {
        {"10.0.0.0", {MOAT_ALLOW, 0, 0, 2, 0}},   {"10.0.0.4", {MOAT_ALLOW, 0, 0, 2, 0}},
        {"10.0.0.5", {MOAT_DROP, 1, 0, 3, 1}},    {"10.0.0.6", {MOAT_ALLOW, 0, 0, 2, 0}},
        {"10.0.0.127", {MOAT_ALLOW, 0, 0, 2, 0}}, {"10.0.0.128", {MOAT_DROP, 0, 0, 3, 0}},
        {"10.0.0.255", {MOAT_DROP, 0, 0, 3, 0}},  {"10.0.1.0", {MOAT_REJECT, 0, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct moat_flow f = flow("to", "10.1.0.1", cases[i].remote, TCP, 1, 2);
        judge(p, inv, 3, &f, &cases[i].want);
    }
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

START_TEST(no_such_vnic)
{
    struct moat_inventory *inv = shop();
    struct moat_decision d;
    struct moat_flow f = {0};
    uint8_t *blob;
    size_t len;
    ck_assert_int_eq(moat_policy_eval(NULL, inv, 99, &f, &d), -EINVAL);
    ck_assert_uint_eq(d.verdict, MOAT_DROP);
    ck_assert_int_eq(moat_policy_compile(NULL, inv, 99, 1, &blob, &len, NULL), -EINVAL);
    ck_assert_ptr_null(blob);
    moat_inventory_destroy(inv);
}
END_TEST

TCase *eval_tests(void)
{
    TCase *tc = tcase_create("eval");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, verdicts, 0, sizeof rows / sizeof *rows);
    tcase_add_test(tc, quarantine);
    tcase_add_test(tc, own_base);
    tcase_add_test(tc, owners);
    tcase_add_test(tc, no_such_vnic);
    return tc;
}
