/* SPDX-License-Identifier: Apache-2.0 */

/* Damaged texts through all that takes text.  They need not mean anything, but
 * must not break anything, and whatever parses must print and compile. */

#include "test_policy.h"

#include <glob.h>

#include "tests/lib/gen_policy.h"
#include "tests/lib/ruleset_walk.h"

#define MAX_TEXT 16384

static size_t load(const char *path, char *buf)
{
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    size_t n = fread(buf, 1, MAX_TEXT, f);
    fclose(f);
    return n;
}

static size_t damage(char *buf, size_t n, uint64_t *rng)
{
    static const char signs[] = "{},=;\"\\#\n\t -/.:0169azAZ\x80\xc3\xe2\xff";
    for (unsigned i = 1 + moat_gen_below(rng, 6); i > 0 && n > 1; i--) {
        size_t at = moat_gen_below(rng, (unsigned)n), len = moat_gen_below(rng, 24);
        if (at + len > n)
            len = n - at;
        switch (moat_gen_below(rng, 5)) {
        case 0:
            buf[at] = signs[moat_gen_below(rng, sizeof signs - 1)];
            break;
        case 1:
            buf[at] ^= (char)(1 << moat_gen_below(rng, 8));
            break;
        case 2: /* cut out */
            memmove(buf + at, buf + at + len, n - at - len);
            n -= len;
            break;
        case 3: /* twice */
            if (n + len <= MAX_TEXT) {
                memmove(buf + at + len, buf + at, n - at);
                n += len;
            }
            break;
        default:
            if (moat_gen_below(rng, 8) == 0)
                n = at;
            break;
        }
    }
    return n;
}

static bool digest_text(const char *text, size_t n, const struct moat_inventory *inv)
{
    /* A copy without a NUL, so that a read past the end shows. */
    char *exact = malloc(n + !n);
    memcpy(exact, text, n);
    struct moat_diags *ds = moat_diags_create();
    struct moat_policy *p = moat_policy_parse(exact, n, "hostile", ds);
    ck_assert_int_eq(p == NULL, moat_diags_errors(ds) > 0);
    bool ok = p != NULL;
    if (p) {
        moat_policy_check(p, inv, ds);
        char *once = moat_policy_print(p);
        struct moat_policy *again = must_parse(once);
        char *twice = moat_policy_print(again);
        ck_assert_str_eq(once, twice);
        for (unsigned vnic = 0; vnic < moat_inventory_n_vnics(inv); vnic++) {
            uint8_t *blob;
            size_t len;
            ck_assert_int_eq(moat_policy_compile(p, inv, vnic, 1, &blob, &len, NULL), 0);
            ck_assert_ptr_null(moat_walk_check(blob, len));
            free(blob);
        }
        moat_policy_destroy(again);
        free(once);
        free(twice);
    }
    char *why = moat_diags_text(ds);
    ck_assert_ptr_nonnull(why);
    free(why);
    moat_policy_destroy(p);
    moat_diags_destroy(ds);
    free(exact);
    return ok;
}

START_TEST(damaged_texts)
{
    const char *env = getenv("MOAT_HOSTILE");
    unsigned long rounds = env ? strtoul(env, NULL, 0) : 20000;
    struct moat_inventory *inv = shop();
    uint64_t rng = moat_gen_seed(2);
    unsigned long parsed = 0;
    glob_t g;
    ck_assert_int_eq(glob(MOAT_CASES_DIR "/*.moat", 0, NULL, &g), 0);
    char(*texts)[MAX_TEXT] = malloc(g.gl_pathc * sizeof *texts);
    size_t *len = malloc(g.gl_pathc * sizeof *len);
    char *buf = malloc(MAX_TEXT);
    for (size_t i = 0; i < g.gl_pathc; i++)
        len[i] = load(g.gl_pathv[i], texts[i]);
    for (unsigned long i = 0; i < rounds; i++) {
        unsigned k = moat_gen_below(&rng, (unsigned)g.gl_pathc);
        memcpy(buf, texts[k], len[k]);
        parsed += digest_text(buf, damage(buf, len[k], &rng), inv);
    }
    fprintf(stderr, "%lu of %lu damaged texts parse\n", parsed, rounds);
    ck_assert_uint_gt(parsed, rounds / 100);
    free(texts);
    free(len);
    free(buf);
    globfree(&g);
    moat_inventory_destroy(inv);
}
END_TEST

TCase *hostile_tests(void)
{
    TCase *tc = tcase_create("hostile");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, damaged_texts);
    return tc;
}
