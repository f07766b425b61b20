/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl policy: check, apply, show and print policy texts.
 *
 * apply is one transaction: the new Policy row, Global.policy and Global.generation,
 * and a wait for the generation that was read before, so that of two who apply at the
 * same time one is refused.  The text is stored as it was written, so that line
 * numbers are those of the file; the digest is that of the canonical text. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "db.h"
#include "file.h"
#include "inventory.h"
#include "openvswitch/dynamic-string.h"
#include "out.h"
#include "ovsdb-idl.h"
#include "policy/policy.h"
#include "text.h"
#include "timeval.h"
#include "util.h"

/* --- files ------------------------------------------------------------------ */

/* Replaces the file as a whole or not at all. */
static bool write_file(const char *file, const char *text)
{
    char *real = realpath(file, NULL); /* a symbolic link stays one */
    char *tmp = real ? xasprintf("%s.XXXXXX", real) : NULL;
    int fd = tmp ? mkostemp(tmp, O_CLOEXEC) : -1;
    size_t len = strlen(text), done = 0;
    struct stat st;
    bool ok = fd >= 0;

    while (ok && done < len) {
        ssize_t n = write(fd, text + done, len - done);

        if (n < 0 && errno != EINTR)
            ok = false;
        done += n > 0 ? (size_t)n : 0;
    }
    if (ok && !stat(real, &st)) {
        ok = !fchmod(fd, st.st_mode & 07777);
        if (ok && geteuid() == 0)
            ok = !fchown(fd, st.st_uid, st.st_gid);
    }
    ok = ok && !fsync(fd) && !rename(tmp, real);
    if (!ok) {
        cli_error("cannot write %s: %s", file, ovs_strerror(errno));
        if (fd >= 0)
            unlink(tmp);
    }
    if (fd >= 0)
        close(fd);
    free(tmp);
    free(real);
    return ok;
}

/* --- parsing and checking --------------------------------------------------- */

struct draft {
    const char *file;
    char *text;
    size_t len;
    struct moat_policy *policy; /* NULL: has errors */
    struct moat_diags *diags;
};

/* False: the file cannot be read, and that has been said. */
static bool draft_open(struct draft *d, const char *file)
{
    memset(d, 0, sizeof *d);
    d->file = file_name(file);
    d->text = file_read(file, MOAT_POLICY_MAX_TEXT, &d->len);
    if (!d->text)
        return false;
    d->diags = moat_diags_create();
    if (!d->diags)
        out_of_memory();
    d->policy = moat_policy_parse(d->text, d->len, d->file, d->diags);
    return true;
}

static void draft_close(struct draft *d)
{
    moat_policy_destroy(d->policy);
    moat_diags_destroy(d->diags);
    free(d->text);
}

static const char *policy_name(const struct draft *d)
{
    const char *name = d->policy ? moat_policy_name(d->policy) : NULL;

    return name && *name ? name : "policy";
}

/* Checks against what is in the database: names, and whether each vNIC's ruleset can
 * be made.  False: it cannot be used as things are, and that has been said. */
static bool check_with_db(struct draft *d, const struct db *db)
{
    char *problems = NULL;
    struct moat_inventory *inv = moat_inventory_from_db(db->idl, &problems);
    bool ok = inv;

    if (!inv) {
        cli_error("the database's VMs and networks cannot be used with any policy:");
        cli_hint("%s", problems ? problems : "out of memory");
    } else {
        moat_policy_check(d->policy, inv, d->diags);
        for (unsigned i = 0; i < moat_inventory_n_vnics(inv) && ok; i++) {
            uint8_t *blob = NULL;
            size_t len;
            int rc = moat_policy_compile(d->policy, inv, i, 1, &blob, &len, d->diags);

            free(blob);
            if (rc) {
                ok = false;
                if (!moat_diags_errors(d->diags))
                    cli_error("%s cannot be compiled: %s", d->file, ovs_strerror(-rc));
            }
        }
    }
    free(problems);
    moat_inventory_destroy(inv);
    return ok;
}

static bool is_good(const struct draft *d)
{
    return d->policy && !moat_diags_errors(d->diags);
}

static void say_diags(const struct draft *d)
{
    char *text = moat_diags_text(d->diags), *plain;

    if (!text)
        out_of_memory();
    plain = text_lines(text);
    fflush(stdout);
    fputs(plain, stderr);
    free(plain);
    free(text);
}

static struct json *diags_json(const struct draft *d)
{
    struct json *array = json_array_create_empty();

    for (unsigned i = 0; i < moat_diags_count(d->diags); i++) {
        const struct moat_diag *g = moat_diags_get(d->diags, i);
        struct json *j = json_object_create();

        json_object_put_string(j, "severity", g->severity == MOAT_DIAG_ERROR ? "error" : "warning");
        json_object_put(j, "file", json_text(g->file ? g->file : d->file));
        json_object_put(j, "line", json_integer_create(g->line));
        json_object_put(j, "column", json_integer_create(g->column));
        json_object_put(j, "message", json_text(g->message));
        json_object_put(j, "hint", g->hint ? json_text(g->hint) : json_null_create());
        json_array_add(array, j);
    }
    return array;
}

static struct json *report(const struct draft *d, bool ok)
{
    struct json *j = json_object_create();

    json_object_put(j, "file", json_text(d->file));
    json_object_put(j, "ok", json_boolean_create(ok));
    json_object_put(j, "policy", d->policy ? json_text(policy_name(d)) : json_null_create());
    json_object_put(j, "rules",
                    d->policy ? json_integer_create(moat_policy_n_rules(d->policy))
                              : json_null_create());
    json_object_put(j, "diagnoses", diags_json(d));
    return j;
}

/* Shows what is wrong with a draft.  Returns CLI_FAILED. */
static int refuse(const struct cli *cli, const struct draft *d, const char *consequence)
{
    unsigned errors = moat_diags_errors(d->diags);

    if (cli->json)
        json_print(report(d, false), stdout);
    else
        say_diags(d);
    if (errors)
        cli_error("%s: %u error%s%s", d->file, errors, errors == 1 ? "" : "s", consequence);
    return CLI_FAILED;
}

static int check_policy(const struct cli *cli)
{
    struct draft d;
    struct db db;
    bool ok = true;
    char *error = NULL;

    if (!draft_open(&d, cli->args[0]))
        return CLI_FAILED;
    if (d.policy && !(error = db_try_open(&db, cli, DB_VM | DB_NETWORK))) {
        ok = check_with_db(&d, &db);
        db_close(&db);
    }
    int status = CLI_OK;
    if (!is_good(&d) || !ok) {
        status = refuse(cli, &d, "");
    } else if (cli->json) {
        struct json *j = report(&d, true);

        json_object_put(j, "checked_with_database", json_boolean_create(!error));
        json_print(j, stdout);
    } else {
        say_diags(&d);
        printf("%s: good: policy \"%s\", %u rules\n", d.file, policy_name(&d),
               moat_policy_n_rules(d.policy));
        if (error) {
            cli_error(
                "not checked against VMs and networks: cannot reach the Moat database at %s: %s",
                cli->db_remote, error);
        }
    }
    free(error);
    draft_close(&d);
    return status;
}

/* --- apply ------------------------------------------------------------------ */

static char *sha256_hex(const char *text)
{
    uint8_t md[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    if (!EVP_Digest(text, strlen(text), md, &n, EVP_sha256(), NULL))
        ovs_fatal(0, "SHA-256 is not available");
    return text_hex(md, n);
}

static char *digest_of(const struct moat_policy *policy)
{
    char *canonical = moat_policy_print(policy), *digest;

    if (!canonical)
        out_of_memory();
    digest = sha256_hex(canonical);
    free(canonical);
    return digest;
}

static char *who(void)
{
    const struct passwd *pw = getpwuid(getuid());
    char host[256] = "";

    gethostname(host, sizeof host - 1);
    return pw ? xasprintf("%s@%s", pw->pw_name, host)
              : xasprintf("uid %u@%s", (unsigned)getuid(), host);
}

/* The operations that make `d` generation `gen`, if Global is as it was read. */
static struct json *apply_ops(const struct cli *cli, const struct draft *d,
                              const struct moatrec_global *g, int64_t gen, const char *digest)
{
    struct json *ops = db_ops(cli), *policy = json_object_create(), *global = json_object_create();
    struct json *before = json_array_create_empty();
    char *by = who();

    if (g) {
        struct json *row = json_object_create();

        json_object_put(row, "generation", json_integer_create(g->generation));
        json_object_put(row, "policy",
                        g->policy ? db_uuid(&g->policy->header_.uuid)
                                  : db_set(json_array_create_empty()));
        json_array_add(before, row);
    }
    db_require(ops, "Global", json_array_create_empty(),
               json_array_create_2(json_string_create("generation"), json_string_create("policy")),
               before);
    json_object_put(policy, "name", json_text(policy_name(d)));
    json_object_put(policy, "text", json_string_create(d->text));
    json_object_put(policy, "generation", json_integer_create(gen));
    json_object_put_string(policy, "digest", digest);
    json_object_put(policy, "applied_by", json_text(by));
    json_object_put(policy, "applied_at", json_integer_create(time(NULL)));
    db_insert(ops, "Policy", "policy", policy);
    json_object_put(global, "policy", db_named_uuid("policy"));
    json_object_put(global, "generation", json_integer_create(gen));
    if (g)
        db_update(ops, "Global", json_array_create_empty(), global);
    else
        db_insert(ops, "Global", NULL, global);
    free(by);
    return ops;
}

static int say_overtaken(struct db *db)
{
    const struct moatrec_global *g;

    db_wait_change(db, time_msec() + 2000); /* to say who it was */
    g = moatrec_global_first(db->idl);
    cli_error("somebody else applied a policy at the same moment; this one was not applied");
    if (g && g->policy)
        cli_hint("Now in force: \"%s\", generation %" PRId64 ", by %s.", g->policy->name,
                 g->generation, g->policy->applied_by);
    cli_hint("Look at it with moatctl policy show, then apply again.");
    return CLI_FAILED;
}

/* --- waiting for the hosts -------------------------------------------------- */

struct progress {
    size_t done, all;
    struct ds late; /* lines */
};

static void add_late(struct progress *p, const char *host, const char *vnic, const char *what)
{
    ds_put_format(&p->late, "%svNIC \"%s\" on host \"%s\": %s", p->late.length ? "\n  " : "", vnic,
                  host, what);
}

static bool is_reported(const struct db *db, const char *host, const char *vnic)
{
    const struct moatrec_enforced *e;

    MOATREC_ENFORCED_FOR_EACH(e, db->idl)
    if (!strcmp(e->host, host) && !strcmp(e->vnic_id, vnic))
        return true;
    return false;
}

static void look(const struct db *db, int64_t generation, struct progress *p)
{
    const struct moatrec_enforced *e;
    const struct moatrec_vnic *v;

    p->done = p->all = 0;
    ds_clear(&p->late);
    MOATREC_ENFORCED_FOR_EACH(e, db->idl)
    {
        if (!strcmp(e->state, "departed")) /* a tombstone enforces nothing */
            continue;
        p->all++;
        if (e->generation >= generation) {
            p->done++;
        } else {
            char *what = xasprintf("generation %" PRId64 "%s%s", e->generation,
                                   *e->problem ? ", " : "", e->problem);

            add_late(p, e->host, e->vnic_id, what);
            free(what);
        }
    }
    MOATREC_VNIC_FOR_EACH(v, db->idl)
    if (v->holder && *v->holder && !is_reported(db, v->holder, v->vnic_id)) {
        p->all++;
        add_late(p, v->holder, v->vnic_id, "has not reported");
    }
}

static int wait_for_hosts(struct db *db, int64_t generation, int64_t seconds, struct progress *p)
{
    long long deadline = time_msec() + seconds * 1000;
    size_t said = SIZE_MAX;

    for (;;) {
        look(db, generation, p);
        if (p->done != said) {
            fprintf(stderr, "moatctl: %zu of %zu vNICs enforce generation %" PRId64 "\n", p->done,
                    p->all, generation);
            said = p->done;
        }
        if (p->done == p->all)
            return CLI_OK;
        if (time_msec() >= deadline || (!db_wait_change(db, deadline) && time_msec() < deadline))
            break;
    }
    if (!ovsdb_idl_is_alive(db->idl)) {
        cli_error("the policy is applied, but the database was lost while waiting for the hosts");
        cli_hint("See: moatctl status");
        return CLI_FAILED;
    }
    cli_error("the policy is applied, but after %" PRId64
              " s these do not enforce generation %" PRId64 ":",
              seconds, generation);
    cli_hint("%s", ds_cstr(&p->late));
    cli_hint("See: moatctl status; moatctl event list --severity warning");
    return CLI_FAILED;
}

static void print_applied(const struct cli *cli, const struct draft *d, int64_t generation,
                          const char *digest, bool dry_run, const struct progress *p)
{
    if (!cli->json) {
        printf("%s policy \"%s\", %u rules, as generation %" PRId64 "\n",
               dry_run ? "would apply" : "applied", policy_name(d), moat_policy_n_rules(d->policy),
               generation);
        return;
    }
    struct json *j = report(d, true);

    json_object_put(j, "generation", json_integer_create(generation));
    json_object_put_string(j, "digest", digest);
    json_object_put(j, "dry_run", json_boolean_create(dry_run));
    if (p) {
        json_object_put(j, "vnics", json_integer_create((long long)p->all));
        json_object_put(j, "vnics_enforcing", json_integer_create((long long)p->done));
    }
    json_print(j, stdout);
}

static int commit(const struct cli *cli, struct draft *d, struct db *db, int64_t if_generation,
                  int64_t wait)
{
    const struct moatrec_global *g = moatrec_global_first(db->idl);
    int64_t now = g ? g->generation : 0, gen = now + 1;
    bool dry_run = cli->opts[CLI_OPT_DRY_RUN];
    struct progress p = {.late = DS_EMPTY_INITIALIZER};
    int status = CLI_OK;

    if (if_generation >= 0 && if_generation != now) {
        cli_error("generation %" PRId64 " is in force, not %" PRId64 "; nothing has changed", now,
                  if_generation);
        cli_hint("See: moatctl policy show");
        return CLI_FAILED;
    }
    char *digest = digest_of(d->policy);
    if (!dry_run) {
        enum db_result result = db_transact(db, apply_ops(cli, d, g, gen, digest));

        status = result == DB_DONE       ? CLI_OK
                 : result == DB_CONFLICT ? say_overtaken(db)
                                         : CLI_FAILED;
    }
    if (status == CLI_OK && !cli->json)
        print_applied(cli, d, gen, digest, dry_run, NULL);
    bool applied = status == CLI_OK;
    if (applied && wait && !dry_run) {
        fflush(stdout);
        status = wait_for_hosts(db, gen, wait, &p);
    }
    if (applied && cli->json)
        print_applied(cli, d, gen, digest, dry_run, wait && !dry_run ? &p : NULL);
    ds_destroy(&p.late);
    free(digest);
    return status;
}

static int apply_policy(const struct cli *cli)
{
    int64_t wait = 0, if_generation = -1;
    struct draft d;
    struct db db;
    int status;

    if (!cli_number(cli, CLI_OPT_WAIT, 0, 86400, &wait) ||
        !cli_number(cli, CLI_OPT_IF_GENERATION, 0, INT64_MAX, &if_generation))
        return CLI_USAGE;
    if (!draft_open(&d, cli->args[0]))
        return CLI_FAILED;
    if (!d.policy) {
        status = refuse(cli, &d, "; nothing has changed");
    } else if (!db_open(&db, cli, DB_GLOBAL | DB_VM | DB_NETWORK | DB_ENFORCED)) {
        status = CLI_FAILED;
    } else {
        if (!check_with_db(&d, &db) || !is_good(&d)) {
            status = refuse(cli, &d, "; nothing has changed");
        } else {
            if (!cli->json)
                say_diags(&d);
            status = commit(cli, &d, &db, if_generation, wait);
        }
        db_close(&db);
    }
    draft_close(&d);
    return status;
}

/* --- show, fmt, base -------------------------------------------------------- */

static const struct out_column show_columns[] = {
    {"name", NULL, 0},       {"generation", NULL, 0}, {"digest", NULL, 0},
    {"applied_by", NULL, 0}, {"applied_at", NULL, 0}, {"text", NULL, 0},
};

static void show_text(const struct moatrec_policy *p)
{
    char *at = text_time(p->applied_at), *plain = text_lines(p->text);
    size_t n = strlen(plain);

    /* To stderr, so that the output is the policy and nothing else. */
    cli_error("policy \"%s\", generation %" PRId64 ", applied by %s at %s", p->name, p->generation,
              p->applied_by, at);
    printf("%s%s", plain, n && plain[n - 1] == '\n' ? "" : "\n");
    free(plain);
    free(at);
}

static int show_policy(const struct cli *cli)
{
    const struct moatrec_global *g;
    int status = CLI_OK;
    struct db db;

    if (!db_open(&db, cli, DB_GLOBAL))
        return CLI_FAILED;
    g = moatrec_global_first(db.idl);
    if (!g || !g->policy) {
        cli_error("no policy is applied: every VM is in quarantine");
        cli_hint("Apply one: moatctl policy apply FILE");
        status = CLI_FAILED;
    } else if (!cli->json) {
        show_text(g->policy);
    } else {
        struct out *o = out_create(show_columns, ARRAY_SIZE(show_columns), OUT_JSON);

        out_row(o);
        out_string(o, "name", g->policy->name);
        out_integer(o, "generation", g->policy->generation);
        out_string(o, "digest", g->policy->digest);
        out_string(o, "applied_by", g->policy->applied_by);
        out_time(o, "applied_at", g->policy->applied_at);
        out_string(o, "text", g->policy->text);
        json_print(out_json_first(o), stdout);
        out_destroy(o);
    }
    db_close(&db);
    return status;
}

static int print_formatted(const struct cli *cli, const struct draft *d, const char *canonical)
{
    const char *file = cli->n_args ? cli->args[0] : NULL;
    bool same = strlen(canonical) == d->len && !memcmp(canonical, d->text, d->len);

    if (cli->opts[CLI_OPT_CHECK]) {
        if (!same) {
            cli_error("%s is not in canonical form", d->file);
            cli_hint("Write it so: moatctl policy fmt -i %s", d->file);
        }
        return same ? CLI_OK : CLI_FAILED;
    }
    if (cli->opts[CLI_OPT_IN_PLACE])
        return same || write_file(file, canonical) ? CLI_OK : CLI_FAILED;
    if (cli->json) {
        struct json *j = json_object_create();

        json_object_put(j, "file", json_text(d->file));
        json_object_put(j, "canonical", json_boolean_create(same));
        json_object_put(j, "text", json_text(canonical));
        json_print(j, stdout);
    } else {
        fputs(canonical, stdout);
    }
    return CLI_OK;
}

static int format_policy(const struct cli *cli)
{
    const char *file = cli->n_args ? cli->args[0] : NULL;
    struct draft d;
    int status;

    if (cli->opts[CLI_OPT_IN_PLACE] && file_is_stdin(file))
        return cli_usage(cli, "-i needs a file");
    if (!draft_open(&d, file))
        return CLI_FAILED;
    if (!d.policy) {
        status = refuse(cli, &d, "");
    } else {
        char *canonical = moat_policy_print(d.policy);

        if (!canonical)
            out_of_memory();
        status = print_formatted(cli, &d, canonical);
        free(canonical);
    }
    draft_close(&d);
    return status;
}

static int print_base(const struct cli *cli)
{
    if (cli->json) {
        struct json *j = json_object_create();

        json_object_put(j, "text", json_text(moat_policy_base_text()));
        json_print(j, stdout);
    } else {
        fputs(moat_policy_base_text(), stdout);
    }
    return CLI_OK;
}

const struct cli_command policy_commands[] = {
    {"policy check", "FILE", "check a policy file, change nothing",
     "FILE \"-\" is standard input. With the database at hand, names are checked against its\n"
     "VMs and networks too.",
     0, 1, 1, false, check_policy},
    {"policy apply", "FILE", "make a policy file the policy of the cluster",
     "In one transaction: a policy with an error changes nothing, and if somebody else\n"
     "applies one at the same moment, one of the two is refused. FILE \"-\" is standard\n"
     "input. With --wait, exits 1 if a vNIC does not enforce it in time; it is applied\n"
     "nevertheless.",
     CLI_O(DRY_RUN) | CLI_O(WAIT) | CLI_O(IF_GENERATION), 1, 1, false, apply_policy},
    {"policy show", "", "print the policy in force",
     "The text goes to standard output as it was applied, name and generation to standard\n"
     "error.",
     0, 0, 0, true, show_policy},
    {"policy fmt", "[FILE]", "print a policy file in canonical form",
     "Without FILE, or with \"-\", it reads standard input.", CLI_O(IN_PLACE) | CLI_O(CHECK), 0, 1,
     false, format_policy},
    {"policy base", "", "print the built-in base tier", NULL, 0, 0, 0, false, print_base},
    {.name = NULL},
};
