/* SPDX-License-Identifier: Apache-2.0 */
/* This host's engine: see engine.h. */

#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "db.h"
#include "policy/policy.h"
#include "text.h"
#include "util.h"

int engine_try_open(const struct cli *cli, struct moat_ctl **c, char *why, size_t why_size)
{
    size_t n = strlen(cli->ctl_path);
    int rc = moat_ctl_open(cli->ctl_path, cli->timeout_s * 1000, c, why, why_size);

    /* Every message of ours names the socket. */
    if (rc && !strncmp(why, cli->ctl_path, n) && !strncmp(why + n, ": ", 2))
        memmove(why, why + n + 2, strlen(why + n + 2) + 1);
    return rc;
}

void engine_say_unreachable(const struct cli *cli, int rc, const char *why)
{
    cli_error("cannot reach the engine at %s: %s", cli->ctl_path, *why ? why : ovs_strerror(-rc));
    if (rc == -EACCES || rc == -EPERM)
        cli_hint("Only root may talk to it.");
    else if (rc == -EPROTONOSUPPORT)
        cli_hint("The engine and moatctl are of different versions. To take the engine that is "
                 "installed into the switch: moatctl engine replace");
    else
        cli_hint(
            "Is ovs-vswitchd running with libmoat.so? Another socket: --ctl=PATH or MOAT_CTL.");
}

bool engine_open(const struct cli *cli, struct moat_ctl **c)
{
    char why[512] = "";
    int rc = engine_try_open(cli, c, why, sizeof why);

    if (rc)
        engine_say_unreachable(cli, rc, why);
    return !rc;
}

int engine_say(const struct cli *cli, const struct moat_ctl *c)
{
    cli_error("the engine at %s: %s", cli->ctl_path, moat_ctl_error(c));
    return CLI_FAILED;
}

static int compare_slots(const void *a, const void *b)
{
    const struct moat_slot_info *x = a, *y = b;
    int order = strcmp(x->conf.vm, y->conf.vm);

    return order ? order : strcmp(x->conf.vnic, y->conf.vnic);
}

bool engine_slots(const struct cli *cli, struct moat_ctl *c, const char *vnic, const char *vm,
                  struct moat_slot_info **slots, size_t *n)
{
    size_t kept = 0;

    if (moat_ctl_slots(c, slots, n)) {
        engine_say(cli, c);
        return false;
    }
    for (size_t i = 0; i < *n; i++)
        if ((!vnic || !strcmp((*slots)[i].conf.vnic, vnic)) &&
            (!vm || !strcmp((*slots)[i].conf.vm, vm)))
            (*slots)[kept++] = (*slots)[i];
    *n = kept;
    if (!kept && (vnic || vm)) {
        cli_error("this host has no slot of %s \"%s\"", vnic ? "vNIC" : "VM", vnic ? vnic : vm);
        cli_hint("See: moatctl slot list");
        free(*slots);
        *slots = NULL;
        return false;
    }
    if (kept)
        qsort(*slots, kept, sizeof **slots, compare_slots);
    return true;
}

void rulebook_open(struct rulebook *book, const struct cli *cli)
{
    struct cli quick = *cli;
    const struct moatrec_global *g;
    struct db db;

    memset(book, 0, sizeof *book);
    quick.timeout_s = MIN(cli->timeout_s, 2);
    book->why = db_try_open(&db, &quick, DB_GLOBAL);
    if (book->why)
        return;
    g = moatrec_global_first(db.idl);
    if (g && g->policy) {
        const char *text = g->policy->text;

        book->policy = moat_policy_parse(text, strlen(text), "policy", NULL);
        book->generation = (uint64_t)g->policy->generation;
    }
    if (book->policy) {
        book->n_lines = moat_policy_n_rules(book->policy) + 1;
        book->lines = xcalloc(book->n_lines, sizeof *book->lines);
    }
    if (!book->policy)
        book->why = xstrdup(g && g->policy ? "its policy does not parse" : "it has no policy");
    db_close(&db);
}

void rulebook_close(struct rulebook *book)
{
    for (uint32_t i = 0; i < book->n_lines; i++)
        free(book->lines[i].text);
    free(book->lines);
    moat_policy_destroy(book->policy);
    free(book->why);
}

/* The base tier's rules follow the policy's own, unless it has a base tier itself. */
static bool is_base_rule(const struct moat_policy *policy, uint32_t rule, const char *text,
                         unsigned line)
{
    unsigned n = moat_policy_n_rules(policy), n_base = 0, base_line;
    char buf[1024];

    while (moat_policy_rule_text(NULL, n_base + 1, buf, sizeof buf, &base_line) >= 0)
        n_base++;
    return rule && rule <= n && n_base <= n && rule > n - n_base &&
           moat_policy_rule_text(NULL, rule - (n - n_base), buf, sizeof buf, &base_line) >= 0 &&
           base_line == line && !strcmp(buf, text);
}

static void look_up(struct rulebook *book, uint32_t rule, struct rule_line *l)
{
    char buf[1024];

    l->known = true;
    if (moat_policy_rule_text(book->policy, rule, buf, sizeof buf, &l->line) < 0)
        return;
    l->text = xstrdup(buf);
    l->is_builtin = is_base_rule(book->policy, rule, buf, l->line);
}

const char *rulebook_text(struct rulebook *book, uint64_t generation, uint32_t rule, unsigned *line,
                          bool *is_builtin)
{
    struct rule_line *l;

    *line = 0;
    *is_builtin = false;
    if (!book->policy || generation != book->generation || rule >= book->n_lines)
        return NULL;
    l = &book->lines[rule];
    if (!l->known)
        look_up(book, rule, l);
    *line = l->line;
    *is_builtin = l->is_builtin;
    return l->text;
}
