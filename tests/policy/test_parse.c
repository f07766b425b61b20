/* SPDX-License-Identifier: Apache-2.0 */

/* Goldens: NAME.moat and NAME.print (canonical form) or NAME.errors (the whole
 * diagnosis) beside it.  MOAT_BLESS=1 writes what comes out instead of comparing;
 * read the difference before you commit it. */

#include "test_policy.h"

#include <glob.h>

static char *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    char *text = malloc(MOAT_POLICY_MAX_TEXT + 1);
    *len = fread(text, 1, MOAT_POLICY_MAX_TEXT, f);
    text[*len] = '\0';
    fclose(f);
    return text;
}

static void compare_or_bless(const char *path, const char *got)
{
    size_t len;
    if (getenv("MOAT_BLESS")) {
        FILE *f = fopen(path, "wb");
        ck_assert_ptr_nonnull(f);
        fputs(got, f);
        fclose(f);
        return;
    }
    char *want = read_file(path, &len);
    ck_assert_msg(want != NULL, "%s is missing; this came out:\n%s", path, got);
    ck_assert_msg(!strcmp(want, got), "%s:\n--- wanted\n%s--- got\n%s", path, want, got);
    free(want);
}

static void one_golden(const char *path)
{
    size_t len;
    char *text = read_file(path, &len);
    const char *file = strrchr(path, '/') + 1;
    char out[4096];
    int stem = (int)(strlen(path) - strlen(".moat"));

    struct moat_diags *ds = moat_diags_create();
    struct moat_policy *p = moat_policy_parse(text, len, file, ds);
    char *why = moat_diags_text(ds);
    bool bad = !strncmp(file, "bad-", 4);
    ck_assert_msg(bad == !p, "%s %s\n%s", path, bad ? "parses" : "does not parse", why);
    ck_assert_int_eq(moat_diags_errors(ds) > 0, bad);
    if (bad) {
        snprintf(out, sizeof out, "%.*s.errors", stem, path);
        compare_or_bless(out, why);
    } else {
        char *printed = moat_policy_print(p);
        snprintf(out, sizeof out, "%.*s.print", stem, path);
        compare_or_bless(out, printed);
        struct moat_policy *again = must_parse(printed);
        char *twice = moat_policy_print(again);
        ck_assert_str_eq(printed, twice);
        moat_policy_destroy(again);
        free(printed);
        free(twice);
    }
    moat_policy_destroy(p);
    moat_diags_destroy(ds);
    free(why);
    free(text);
}

START_TEST(goldens)
{
    glob_t g;
    ck_assert_int_eq(glob(MOAT_CASES_DIR "/*.moat", 0, NULL, &g), 0);
    ck_assert_uint_ge(g.gl_pathc, 8);
    for (size_t i = 0; i < g.gl_pathc; i++)
        one_golden(g.gl_pathv[i]);
    globfree(&g);
}
END_TEST

#define P "policy \"p\" version 1\n"

/* One mistake each, and how its message starts. */
static const struct {
    const char *text, *message;
} mistakes[] = {
    {"", "t:1:1: error: the policy has no name"},
    {"group a = any\n", "t:1:1: error: the policy has no name"},
    {"policy \"\" version 1\n", "t:1:8: error: the policy's name is empty"},
    {"policy \"p\"\n", "t:1:11: error: expected `version`"},
    {"policy \"p\" version 2\n", "t:1:20: error: expected 1"},
    {P P, "t:2:1: error: the policy has a name already"},
    {"group a = any\n" P, "t:2:1: error: `policy` must be the first"},
    {P "group 1a = any\n", "t:2:7: error: `1a` cannot be the name of a group"},
    {P "group any = vms\n", "t:2:7: error: `any` is a word of the language"},
    {P "group a vms\n", "t:2:9: error: expected `=`"},
    {P "group a = \n\n", "t:4:1: error: expected a group, found the end of the file"},
    {P "group a = b\n", "t:2:11: error: there is no group `b`"},
    {P "group a = a\n", "t:2:11: error: group `a` contains itself"},
    {P "group a = b\ngroup b = any except a\n", "t:3:22: error: group `a` contains itself"},
    {P "group a = any\ngroup a = vms\n", "t:3:7: error: group `a` is defined twice"},
    {P "group a = \"db\"\n", "t:2:11: error: expected a group, found \"db\""},
    {P "group a = vm db\n", "t:2:14: error: expected the name of a VM"},
    {P "group a = vm uuid 12\n", "t:2:19: error: expected a UUID"},
    {P "group a = vms labelled role\n", "t:2:28: error: expected `=`"},
    {P "group a = vms labeled role=x\n", "t:2:15: error: expected `labelled`"},
    {P "group a = 10.0.0.1\n", "t:2:11: error: expected a group, found `10.0.0.1`"},
    {P "group a = addresses web\n", "t:2:21: error: `web` is no address"},
    {P "group a = addresses 10.0.0.0/33\n", "t:2:21: error: bad prefix length"},
    {P "group a = addresses 10.0.0.0/08\n", "t:2:21: error: bad prefix length"},
    {P "group a = addresses 10.0.0.1/24\n", "t:2:21: error: `10.0.0.1/24` has bits set"},
    {P "group a = addresses 10.0.0.256\n", "t:2:21: error: `10.0.0.256` is no address"},
    {P "group a = addresses 10.0.0.9-10.0.0.1\n", "t:2:21: error: `10.0.0.9-10.0.0.1` goes back"},
    {P "group a = addresses 10.0.0.9-::1\n", "t:2:21: error: `10.0.0.9-::1` goes from one family"},
    {P "group a = any any\n", "t:2:15: error: expected the end of the line"},
    {P "service a = tcp 65536\n", "t:2:17: error: expected a port"},
    {P "service a = tcp http\n", "t:2:17: error: expected a port"},
    {P "service a = tcp 9-1\n", "t:2:17: error: `9-1` goes backwards"},
    {P "service a = tcp 80, 443\n", "t:2:21: error: expected a service, found `443`"},
    {P "service a = udp 67 from 68\n", "t:2:25: error: expected `port`"},
    {P "service a = icmp packet-too-big\n", "t:2:18: error: expected a type of ICMP"},
    {P "service a = icmp fragmentation-needed code 4\n", "t:2:39: error: this type has its code"},
    {P "service a = icmp 256\n", "t:2:18: error: expected a type of ICMP"},
    {P "service a = protocol 256\n", "t:2:22: error: expected a protocol number"},
    {P "service a = b\nservice b = a\n", "t:3:13: error: service `a` contains itself"},
    {P "service a = b\n", "t:2:13: error: there is no service `b`"},
    {P "allow from any to any\n", "t:2:1: error: a rule outside of a tier"},
    {P "tier {\n}\n", "t:2:6: error: expected the name of a tier"},
    {P "tier a\n", "t:2:7: error: expected `{`"},
    {P "tier a {\n", "t:2:8: error: this block has no end"},
    {P "tier a {\n}\ntier a {\n}\n", "t:4:6: error: tier `a` is defined twice"},
    {P "tier base {\n}\ntier a {\n}\n", "t:2:6: error: `tier base` is not the last"},
    {P "tier a {\nallow to any from any\n}\n", "t:3:7: error: expected `from`"},
    {P "tier a {\nallow from any\n}\n", "t:3:15: error: expected `to`"},
    {P "tier a {\nallow from any to\n}\n", "t:3:18: error: expected a group"},
    {P "tier a {\npass from any to any\n}\n", "t:3:1: error: expected an action"},
    {P "tier a {\ndrop loose from any to any\n}\n", "t:3:1: error: only `allow` can be `loose`"},
    {P "tier a {\nlog log from any to any\n}\n", "t:3:1: error: `log` cannot have `log`"},
    {P "tier a {\nallow log log from any to any\n}\n", "t:3:11: error: `log` twice"},
    {P "tier a {\nrule allow from any to any\n}\n", "t:3:6: error: expected the rule's name"},
    {P "tier a {\nrule \"x\" allow from any to any\nrule \"x\" drop from any to any\n}\n",
     "t:4:1: error: rule `x` is defined twice"},
    {P "default log\n", "t:2:9: error: expected `drop`, `reject` or `allow`"},
    {P "default drop\ndefault drop\n", "t:3:1: error: a second default"},
    {P "settings any {\n}\n", "t:2:10: error: expected `for`"},
    {P "settings for outside {\n}\n", "t:2:14: error: settings are for VMs"},
    {P "group a = addresses ::1\nsettings for a {\n}\n", "t:3:14: error: settings are for VMs"},
    {P "settings for any { colour red }\n", "t:2:20: error: expected a setting"},
    {P "settings for any { on-missing-policy pickup }\n", "t:2:38: error: expected `block` or"},
    {P "settings for any { on-missing-state pickup 5 }\n", "t:2:44: error: expected 1s to 24 h"},
    {P "settings for any { on-missing-state pickup 1500ms }\n", "t:2:44: error: expected 1s to"},
    {P "settings for any { hold 61s }\n", "t:2:25: error: expected a time of up to 60s"},
    {P "settings for any { hold 4294967296s }\n", "t:2:25: error: expected a time"},
    {P "settings for any { anti-spoofing learn }\n", "t:2:34: error: expected `strict`, `learn-"},
    {P "settings for any { vlan allow }\n", "t:2:25: error: expected `block` or `inspect`"},
    {P "settings for any { ra-guard 1 }\n", "t:2:29: error: expected `on` or `off`"},
    {P "settings for any { ethertypes }\n", "t:2:31: error: expected an ethertype or `none`"},
    {P "settings for any { ethertypes 35020 }\n", "t:2:31: error: expected an ethertype or `none`"},
    {P "settings for any { ethertypes 0x }\n", "t:2:31: error: expected an ethertype or `none`"},
    {P "settings for any { ethertypes 0x88ccc }\n", "t:2:31: error: expected an ethertype or"},
    {P "settings for any { ethertypes 0x88cg }\n", "t:2:31: error: expected an ethertype or"},
    {P "settings for any { ethertypes 0x88cc, none }\n", "t:2:39: error: expected an ethertype,"},
    {P "settings for any { ethertypes 0x5ff }\n", "t:2:31: error: ethertype 0x05ff cannot be let"},
    {P "settings for any { ethertypes 0x0800 }\n", "t:2:31: error: ethertype 0x0800 cannot be"},
    {P "settings for any { ethertypes 0x0806 }\n", "t:2:31: error: ethertype 0x0806 cannot be"},
    {P "settings for any { ethertypes 0x8035 }\n", "t:2:31: error: ethertype 0x8035 cannot be"},
    {P "settings for any { ethertypes 0x86DD }\n", "t:2:31: error: ethertype 0x86dd cannot be"},
    {P "settings for any { ethertypes 0x8100 }\n", "t:2:31: error: ethertype 0x8100 cannot be"},
    {P "settings for any { ethertypes 0x88a8 }\n", "t:2:31: error: ethertype 0x88a8 cannot be"},
    {P "settings for any { ethertypes 0x9100 }\n", "t:2:31: error: ethertype 0x9100 cannot be"},
    {P "settings for any { ethertypes 0x88cc, 0x88CC }\n", "t:2:39: error: ethertype 0x88cc twice"},
    {P "settings for any { ethertypes 0x1001, 0x1002, 0x1003, 0x1004, 0x1005 }\n",
     "t:2:63: error: more than 4 ethertypes"},
    {P "settings for any { enroll 500ms }\n", "t:2:27: error: expected a time of up to 1h, in s"},
    {P "settings for any { enroll 61m }\n", "t:2:27: error: expected a time of up to 1h, in s"},
    {P "settings for any { enroll off }\n", "t:2:27: error: expected a time of up to 1h, in s"},
    {P "settings for any { max-half-open 1s }\n", "t:2:34: error: expected a number up to"},
    {P "settings for any { max-new-sessions }\n", "t:2:37: error: expected a number up to"},
    {P "settings for any { max-fragments 100000001 }\n", "t:2:34: error: expected a number up"},
    {P "settings for any { max-logs -1 }\n", "t:2:29: error: expected a number up to"},
    {P "settings for any { timer }\n", "t:2:26: error: expected the name of a timer, found `}`"},
    {P "settings for any { timer hold 1s }\n", "t:2:26: error: expected the name of a timer"},
    {P "settings for any { timer icmp }\n", "t:2:31: error: expected 1s to 7d, in seconds"},
    {P "settings for any { timer icmp 0s }\n", "t:2:31: error: expected 1s to 7d, in seconds"},
    {P "settings for any { timer icmp 999ms }\n", "t:2:31: error: expected 1s to 7d, in sec"},
    {P "settings for any { timer icmp 1500ms }\n", "t:2:31: error: expected 1s to 7d, in sec"},
    {P "settings for any { timer icmp 8d }\n", "t:2:31: error: expected 1s to 7d, in seconds"},
    {P "settings for any { timer icmp 604801s }\n", "t:2:31: error: expected 1s to 7d, in sec"},
    {P "settings for any { timer icmp 10 }\n", "t:2:31: error: expected 1s to 7d, in seconds"},
    {P "settings for any { timer icmp 1w }\n", "t:2:31: error: expected 1s to 7d, in seconds"},
    {P "settings for any { timer icmp 999999999d }\n", "t:2:31: error: expected 1s to 7d"},
    {P "settings for any { timer icmp 9s; timer icmp 8s }\n", "t:2:35: error: `timer icmp` twice"},
    {P "settings for any { icmp 9s }\n", "t:2:20: error: expected a setting, found `icmp`"},
    {P "settings for any { on-missing-state pickup 25h }\n", "t:2:44: error: expected 1s to 24"},
    {P "settings for any { on-missing-state pickup 2d }\n", "t:2:44: error: expected 1s to 24"},
    {P "settings for any { hold 1h }\n", "t:2:25: error: expected a time of up to 60s"},
    {P "settings for any { tcp strict; tcp loose }\n", "t:2:32: error: `tcp` twice"},
    {P "}\n", "t:2:1: error: `}` closes nothing"},
    {P "frobnicate\n", "t:2:1: error: expected a statement"},
    {P "# \x01\n", "t:2:3: error: byte 0x01 cannot stand here"},
};

START_TEST(each_mistake)
{
    char *why = diagnosis(mistakes[_i].text);
    ck_assert_msg(!strncmp(why, mistakes[_i].message, strlen(mistakes[_i].message)),
                  "wanted %s, got %s for:\n%s", mistakes[_i].message, why, mistakes[_i].text);
    /* One mistake, one message. */
    const char *second = strstr(why + 1, "\nt:");
    ck_assert_msg(second == NULL, "more than one message:\n%s", why);
    free(why);
}
END_TEST

static char *many(const char *head, const char *line, unsigned n, const char *tail)
{
    size_t size = strlen(head) + strlen(tail) + (strlen(line) + 16) * n + 1, at;
    char *text = malloc(size);
    at = (size_t)snprintf(text, size, "%s", head);
    for (unsigned i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, size - at, line, i, i + 1);
    snprintf(text + at, size - at, "%s", tail);
    return text;
}

static const struct {
    const char *head, *line, *tail;
    unsigned ok, bad;
    const char *message;
} limits[] = {
    {P "tier a {\n", "allow from any to any\n", "}\n", 9990, 9995, "more than 10000 rules"},
    {P "tier a {\n", "allow from any to any\n", "}\n", 10000, 10001, "more than 10000 rules"},
    {P, "group g%u = any\n", "", 4096, 4097, "more than 4096 groups"},
    {P, "service g%u = tcp\n", "", 4096, 4097, "more than 4096 services"},
    {P, "settings for any { }\n", "", 4096, 4097, "more than 4096 settings blocks"},
    {P, "tier t%u { }\n", "", 63, 64, "more than 63 tiers"},
    {P, "tier t%u { }\n", "", 63, 65, "more than 64 tiers"},
    {P "group a = any", ", any", "\n", 4095, 4096, "more than 4096 items in a list"},
    {P "group a = addresses ::1", ", ::1", "\n", 4095, 4096, "more than 4096 addresses"},
    {P "group g0 = any\n", "group g%2$u = g%1$u\n", "", 15, 16, "nested too deeply"},
    {P "group g0 = any\n", "group g%2$u = g%1$u\n", "", 15, 4000, "nested too deeply"},
    {P "service g0 = tcp\n", "service g%2$u = g%1$u\n", "", 15, 4000, "nested too deeply"},
    {"policy \"x", "x", "\" version 1", 62, 63, "is too long"},
    {P "group x", "x", " = any", 62, 63, "is too long"},
    {P "group g = vm \"x", "x", "\"\n", 254, 255, "is too long"},
    {P "#", "x", "\n", 1048553, 1048554, "bytes of text"},
};

START_TEST(each_limit)
{
    unsigned ok = limits[_i].ok, bad = limits[_i].bad;
    if (_i == 1) /* with the built-in rules there is room for less */
        ok = 9991;
    char *text = many(limits[_i].head, limits[_i].line, ok, limits[_i].tail);
    moat_policy_destroy(must_parse(text));
    free(text);
    text = many(limits[_i].head, limits[_i].line, bad, limits[_i].tail);
    char *why = diagnosis(text);
    ck_assert_msg(strstr(why, limits[_i].message) != NULL, "%s", why);
    free(why);
    free(text);
}
END_TEST

START_TEST(many_errors)
{
    char *text = many(P, "x%u\n", 1000, "");
    struct moat_diags *ds = moat_diags_create();
    ck_assert_ptr_null(moat_policy_parse(text, strlen(text), "t", ds));
    ck_assert_uint_eq(moat_diags_count(ds), MOAT_POLICY_MAX_DIAGS);
    ck_assert_uint_eq(moat_diags_errors(ds), 1000);
    char *why = moat_diags_text(ds);
    ck_assert_ptr_nonnull(strstr(why, "... and 900 more"));
    free(why);
    moat_diags_destroy(ds);
    free(text);
}
END_TEST

START_TEST(rule_texts)
{
    struct moat_policy *p =
        must_parse(P "tier a {\n"
                     "  rule \"x\"   allow log from any to vms service tcp 80,udp\n"
                     "}\n"
                     "default reject log\n");
    char buf[200];
    unsigned line;
    ck_assert_int_gt(moat_policy_rule_text(p, 1, buf, sizeof buf, &line), 0);
    ck_assert_str_eq(buf, "rule \"x\" allow log from any to vms service tcp 80, udp");
    ck_assert_uint_eq(line, 3);
    ck_assert_int_eq(moat_policy_rule_text(p, 0, buf, sizeof buf, &line), 18);
    ck_assert_str_eq(buf, "default reject log");
    ck_assert_uint_eq(line, 5);
    ck_assert_int_gt(moat_policy_rule_text(p, 2, buf, sizeof buf, &line), 0);
    ck_assert_str_eq(buf, "rule \"arp\" allow from any to any service arp");
    ck_assert_int_eq(moat_policy_rule_text(p, 1, buf, 5, NULL), 54);
    ck_assert_str_eq(buf, "rule");
    ck_assert_int_eq(moat_policy_rule_text(p, moat_policy_n_rules(p) + 1, buf, 5, NULL), -2);
    moat_policy_destroy(p);
    ck_assert_int_gt(moat_policy_rule_text(NULL, 1, buf, sizeof buf, &line), 0);
    ck_assert_str_eq(buf, "rule \"arp\" allow from any to any service arp");
    ck_assert_int_gt(moat_policy_rule_text(NULL, 0, buf, sizeof buf, &line), 0);
    ck_assert_str_eq(buf, "default drop");
}
END_TEST

/* The base tier is canonical, so that it can be copied into a policy and edited. */
START_TEST(base_is_canonical)
{
    char text[8192];
    snprintf(text, sizeof text, P "\n%s", moat_policy_base_text());
    struct moat_policy *p = must_parse(text);
    char *printed = moat_policy_print(p);
    ck_assert_str_eq(printed, text);
    free(printed);
    moat_policy_destroy(p);
}
END_TEST

START_TEST(warnings)
{
    static const char text[] =
        P "group a = vm \"nobody\"\n"
          "group b = vms labelled role=web and env=nowhere\n"
          "group c = vms labelled role=web except vms labelled role=web\n"
          "group d = vm uuid 6c9f0c1e-0000-4000-8000-000000000000, addresses ::1\n"
          "group e = vm uuid 6c9f0c1e-0000-4000-8000-00000000000f\n"
          "tier a {\n  allow from vm \"ghost\" to vm \"web1\"\n}\n";
    struct moat_inventory *inv = shop();
    struct moat_policy *p = must_parse(text);
    struct moat_diags *ds = moat_diags_create();
    moat_policy_check(p, inv, ds);
    char *why = moat_diags_text(ds);
    ck_assert_str_eq(why, "t:2:11: warning: there is no VM named \"nobody\"\n"
                          "t:3:11: warning: no VM is labelled role=web and the rest\n"
                          "t:4:7: warning: group `c` is empty\n"
                          "t:6:11: warning: there is no VM with UUID "
                          "6c9f0c1e-0000-4000-8000-00000000000f\n"
                          "t:8:14: warning: there is no VM named \"ghost\"\n");
    ck_assert_uint_eq(moat_diags_errors(ds), 0);
    free(why);
    moat_diags_destroy(ds);
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

TCase *parse_tests(void)
{
    TCase *tc = tcase_create("parse");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, goldens);
    tcase_add_loop_test(tc, each_mistake, 0, sizeof mistakes / sizeof *mistakes);
    tcase_add_loop_test(tc, each_limit, 0, sizeof limits / sizeof *limits);
    tcase_add_test(tc, many_errors);
    tcase_add_test(tc, rule_texts);
    tcase_add_test(tc, base_is_canonical);
    tcase_add_test(tc, warnings);
    return tc;
}
