/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl vm: virtual machines, their labels and their vNICs.
 *
 * A VM's name and UUID are unique by the schema; that an address or MAC has one
 * owner in its network is not, so adding a vNIC waits for no such row.
 *
 * Quarantine is a column of the VM.  Only its host can say that it is enforced: --wait
 * reads what the holder of each vNIC reports. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "cli.h"
#include "db.h"
#include "inventory.h"
#include "openvswitch/dynamic-string.h"
#include "out.h"
#include "smap.h"
#include "sset.h"
#include "text.h"
#include "timeval.h"
#include "util.h"

static const struct out_column vm_columns[] = {
    {"name", "NAME", 0},
    {"uuid", "UUID", 0},
    {"labels", "LABELS", OUT_FLEX},
    {"hosts", "HOSTS", OUT_FLEX},
    {"quarantine", "QUARANTINE", 0},
    {"vnics", "VNICS", OUT_FLEX},
    {"addresses", "ADDRESSES", OUT_FLEX},
};

static const struct out_column show_columns[] = {
    {"name", "Name", 0},
    {"uuid", "UUID", 0},
    {"labels", "Labels", 0},
    {"hosts", "Hosts", 0},
    {"quarantine", "Quarantine", 0},
    {"vnics", NULL, 0},
};

static const struct out_column vnic_columns[] = {
    {"vnic", "VNIC", 0},
    {"network", "NETWORK", 0},
    {"mac", "MAC", 0},
    {"addresses", "ADDRESSES", OUT_FLEX},
    {"allowed_addresses", "ALLOWED", OUT_FLEX},
    {"holder", "HOLDER", 0},
    {"epoch", "EPOCH", OUT_RIGHT},
    {"enforced_quarantine", "QUARANTINE", 0},
};

static int say_no_vm(const char *name)
{
    cli_error("there is no VM \"%s\"", name);
    cli_hint("See: moatctl vm list");
    return CLI_FAILED;
}

/* --- reading ---------------------------------------------------------------- */

static int compare_vms(const void *a, const void *b)
{
    const struct moatrec_vm *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static void put_vm(struct out *o, const struct moatrec_vm *vm)
{
    out_row(o);
    out_string(o, "name", vm->name);
    out_string(o, "uuid", vm->vm_uuid);
    out_smap(o, "labels", &vm->labels);
    out_strings(o, "hosts", vm->hosts, vm->n_hosts);
    out_bool(o, "quarantine", vm->quarantine);
}

static void put_vnics_of_vm(struct out *o, const struct moatrec_vm *vm)
{
    size_t n = 0, n_addrs = 0, allocated = 0;
    char **ids = xcalloc(vm->n_vnics + 1, sizeof *ids), **addrs = NULL;

    for (size_t i = 0; i < vm->n_vnics; i++) {
        const struct moatrec_vnic *v = vm->vnics[i];

        ids[n++] = v->vnic_id;
        for (size_t a = 0; a < v->n_addresses; a++) {
            if (n_addrs >= allocated)
                addrs = x2nrealloc(addrs, &allocated, sizeof *addrs);
            addrs[n_addrs++] = v->addresses[a];
        }
    }
    out_strings(o, "vnics", ids, n);
    out_strings(o, "addresses", addrs, n_addrs);
    free(ids);
    free(addrs);
}

static int list_vms(const struct cli *cli)
{
    const struct moatrec_vm *vm, **all = NULL;
    size_t count = 0, allocated = 0;
    struct db db;

    if (!db_open(&db, cli, DB_VM))
        return CLI_FAILED;
    MOATREC_VM_FOR_EACH(vm, db.idl)
    {
        if (count >= allocated)
            all = x2nrealloc(all, &allocated, sizeof *all);
        all[count++] = vm;
    }
    if (count)
        qsort(all, count, sizeof *all, compare_vms);

    struct out *o =
        out_create(vm_columns, ARRAY_SIZE(vm_columns), cli->json ? OUT_JSON : OUT_TABLE);
    for (size_t i = 0; i < count; i++) {
        put_vm(o, all[i]);
        put_vnics_of_vm(o, all[i]);
    }
    out_end(o, stdout);
    out_destroy(o);
    free(all);
    db_close(&db);
    return CLI_OK;
}

/* What the holder of a vNIC reports; NULL: it has not. */
static const struct moatrec_enforced *report_of(const struct db *db, const struct moatrec_vnic *v)
{
    const struct moatrec_enforced *e;

    MOATREC_ENFORCED_FOR_EACH(e, db->idl)
    if (v->holder && !strcmp(e->host, v->holder) && !strcmp(e->vnic_id, v->vnic_id))
        return e;
    return NULL;
}

/* On its host: by an operator, because no rule names the VM, or not. */
static void put_quarantine(struct out *o, const struct moatrec_enforced *e)
{
    if (!e)
        out_value(o, "enforced_quarantine", json_null_create(), xstrdup("not reported"));
    else
        out_value(o, "enforced_quarantine", json_text(e->quarantine),
                  xstrdup(!strcmp(e->quarantine, "operator") ? "by an operator"
                          : *e->quarantine                   ? "no rule names it"
                                                             : "no"));
}

static struct out *vnics_of(const struct db *db, const struct moatrec_vm *vm,
                            enum out_format format)
{
    struct out *o = out_create(vnic_columns, ARRAY_SIZE(vnic_columns), format);

    for (size_t i = 0; i < vm->n_vnics; i++) {
        const struct moatrec_vnic *v = vm->vnics[i];

        out_row(o);
        out_string(o, "vnic", v->vnic_id);
        out_string(o, "network", v->network ? v->network->name : "");
        out_string(o, "mac", v->mac);
        out_strings(o, "addresses", v->addresses, v->n_addresses);
        out_strings(o, "allowed_addresses", v->allowed_addresses, v->n_allowed_addresses);
        if (v->holder)
            out_string(o, "holder", v->holder);
        else
            out_value(o, "holder", json_null_create(), NULL);
        out_integer(o, "epoch", v->epoch);
        put_quarantine(o, report_of(db, v));
    }
    return o;
}

static int show_vm(const struct cli *cli)
{
    const struct moatrec_vm *vm;
    int status = CLI_OK;
    struct db db;

    if (!db_open(&db, cli, DB_VM | DB_ENFORCED))
        return CLI_FAILED;
    vm = db_find_vm(&db, cli->args[0]);
    if (!vm) {
        status = say_no_vm(cli->args[0]);
    } else {
        struct out *o = out_create(show_columns, ARRAY_SIZE(show_columns), OUT_TABLE);
        struct out *vnics = vnics_of(&db, vm, OUT_TABLE);

        put_vm(o, vm);
        if (cli->json) {
            out_value(o, "vnics", out_json(vnics), NULL);
            json_print(out_json_first(o), stdout);
        } else {
            out_print_record(o, stdout);
            printf("\n");
            out_end(vnics, stdout);
        }
        out_destroy(vnics);
        out_destroy(o);
    }
    db_close(&db);
    return status;
}

/* --- VMs -------------------------------------------------------------------- */

/* What the words after the name say. */
struct vm_words {
    char *uuid, *name; /* NULL: not said */
    struct smap labels;
    struct sset unlabels, hosts;
    bool has_hosts;
};

static void vm_words_destroy(struct vm_words *w)
{
    free(w->uuid);
    free(w->name);
    smap_destroy(&w->labels);
    sset_destroy(&w->unlabels);
    sset_destroy(&w->hosts);
}

static bool complain(const struct cli *cli, const char *what, const char *value, char *error)
{
    if (!error)
        return true;
    cli_usage(cli, "%s \"%s\" %s", what, value, error);
    free(error);
    return false;
}

static bool read_label(const struct cli *cli, const char *pair, struct vm_words *w)
{
    const char *value;
    size_t n;

    if (!arg_split(pair, &n, &value)) {
        cli_usage(cli, "label \"%s\" is not key=value", pair);
        return false;
    }
    char *key = xmemdup0(pair, n);
    bool ok = complain(cli, "label", key, arg_label(key)) &&
              complain(cli, "value of a label", value, arg_label(value));
    if (ok)
        smap_replace(&w->labels, key, value);
    free(key);
    return ok;
}

static bool read_hosts(const struct cli *cli, const char *value, struct vm_words *w)
{
    char *copy = xstrdup(value), *save = NULL;
    bool ok = true;

    w->has_hosts = true;
    for (char *h = strtok_r(copy, ",", &save); h && ok; h = strtok_r(NULL, ",", &save)) {
        ok = complain(cli, "host", h, arg_name(h));
        sset_add(&w->hosts, h);
    }
    free(copy);
    return ok;
}

static bool read_vm_words(const struct cli *cli, bool is_new, struct vm_words *w)
{
    for (size_t i = 1; i < cli->n_args; i++) {
        const char *word = cli->args[i], *next = i + 1 < cli->n_args ? cli->args[i + 1] : NULL;
        bool ok;

        if (!strcmp(word, "label") && next) {
            ok = read_label(cli, next, w);
            i++;
        } else if (!strcmp(word, "unlabel") && next && !is_new) {
            ok = complain(cli, "label", next, arg_label(next));
            sset_add(&w->unlabels, next);
            i++;
        } else if (!strncmp(word, "host=", 5)) {
            ok = read_hosts(cli, word + 5, w);
        } else if (!strncmp(word, "uuid=", 5) && is_new) {
            ok = complain(cli, "uuid", word + 5, arg_uuid(word + 5, &w->uuid));
        } else if (!strncmp(word, "name=", 5) && !is_new) {
            ok = complain(cli, "name", word + 5, arg_name(word + 5));
            w->name = xstrdup(word + 5);
        } else {
            cli_usage(cli, "\"%s\" is not understood", word);
            ok = false;
        }
        if (!ok)
            return false;
    }
    return true;
}

static struct json *json_set(const struct sset *set)
{
    struct json *array = json_array_create_empty();
    const char *s;

    SSET_FOR_EACH(s, set)
    json_array_add(array, json_string_create(s));
    return db_set(array);
}

static struct json *json_map(const struct smap *map)
{
    struct json *pairs = json_array_create_empty();
    const struct smap_node *node;

    SMAP_FOR_EACH(node, map)
    json_array_add(pairs, db_pair(node->key, node->value));
    return db_map(pairs);
}

static int insert_vm(const struct cli *cli, struct db *db, struct vm_words *w)
{
    const char *name = cli->args[0];
    const struct moatrec_vm *vm;

    if (!w->uuid) {
        struct uuid u;

        uuid_generate(&u);
        w->uuid = xasprintf(UUID_FMT, UUID_ARGS(&u));
    }
    MOATREC_VM_FOR_EACH(vm, db->idl)
    if (!strcmp(vm->name, name) || !strcmp(vm->vm_uuid, w->uuid)) {
        cli_error("VM \"%s\" has that %s already", vm->name,
                  strcmp(vm->name, name) ? "UUID" : "name");
        cli_hint("See: moatctl vm show %s; to change it: moatctl vm set", vm->name);
        return CLI_FAILED;
    }

    struct json *ops = db_ops(cli), *row = json_object_create();
    json_object_put_string(row, "name", name);
    json_object_put_string(row, "vm_uuid", w->uuid);
    json_object_put(row, "labels", json_map(&w->labels));
    json_object_put(row, "hosts", json_set(&w->hosts));
    db_insert(ops, "VM", NULL, row);
    return db_commit(db, ops);
}

static int update_vm(const struct cli *cli, struct db *db, struct vm_words *w)
{
    const struct moatrec_vm *vm = db_find_vm(db, cli->args[0]);
    struct json *row = json_object_create(), *mutations = json_array_create_empty();
    const char *label;

    if (!vm) {
        json_destroy(row);
        json_destroy(mutations);
        return say_no_vm(cli->args[0]);
    }
    if (w->name)
        json_object_put_string(row, "name", w->name);
    if (w->has_hosts)
        json_object_put(row, "hosts", json_set(&w->hosts));
    /* A map takes an insert only where the key is not, so keys go first. */
    const struct smap_node *node;
    SMAP_FOR_EACH(node, &w->labels)
    sset_add(&w->unlabels, node->key);
    SSET_FOR_EACH(label, &w->unlabels)
    json_array_add(mutations, db_triple("labels", "delete",
                                        db_set(json_array_create_1(json_string_create(label)))));
    json_array_add(mutations, db_triple("labels", "insert", json_map(&w->labels)));

    struct json *ops = db_ops(cli);
    db_require_row(ops, "VM", &vm->header_.uuid, "name", vm->name);
    db_mutate(ops, "VM", db_where_uuid(&vm->header_.uuid), mutations);
    db_update(ops, "VM", db_where_uuid(&vm->header_.uuid), row);
    return db_commit(db, ops);
}

static int write_vm(const struct cli *cli, bool is_new)
{
    struct vm_words w = {.has_hosts = false};
    int status = CLI_USAGE;
    struct db db;

    smap_init(&w.labels);
    sset_init(&w.unlabels);
    sset_init(&w.hosts);
    if ((!is_new || complain(cli, "name", cli->args[0], arg_name(cli->args[0]))) &&
        read_vm_words(cli, is_new, &w)) {
        status = CLI_FAILED;
        if (db_open(&db, cli, DB_VM)) {
            status = is_new ? insert_vm(cli, &db, &w) : update_vm(cli, &db, &w);
            db_close(&db);
        }
    }
    vm_words_destroy(&w);
    return status;
}

static int add_vm(const struct cli *cli)
{
    return write_vm(cli, true);
}

static int set_vm(const struct cli *cli)
{
    return write_vm(cli, false);
}

static int del_vm(const struct cli *cli)
{
    const struct moatrec_vm *vm;
    int status;
    struct db db;

    if (!db_open(&db, cli, DB_VM))
        return CLI_FAILED;
    vm = db_find_vm(&db, cli->args[0]);
    if (!vm) {
        status = say_no_vm(cli->args[0]);
    } else {
        struct json *ops = db_ops(cli);

        db_require_row(ops, "VM", &vm->header_.uuid, "name", vm->name);
        db_delete(ops, "VM", db_where_uuid(&vm->header_.uuid)); /* its vNICs go with it */
        status = db_commit(&db, ops);
    }
    db_close(&db);
    return status;
}

/* --- quarantine ------------------------------------------------------------- */

struct progress {
    size_t done, all;
    struct ds late; /* lines */
};

/* How many vNICs of the VM have a host, and how many of these do as is wanted. */
static void look(const struct db *db, const struct moatrec_vm *vm, bool wanted, struct progress *p)
{
    p->done = p->all = 0;
    ds_clear(&p->late);
    for (size_t i = 0; i < vm->n_vnics; i++) {
        const struct moatrec_vnic *v = vm->vnics[i];
        const struct moatrec_enforced *e = report_of(db, v);

        if (!v->holder || !*v->holder)
            continue;
        p->all++;
        if (e && !strcmp(e->quarantine, "operator") == wanted && !*e->problem)
            p->done++;
        else
            ds_put_format(&p->late, "%svNIC \"%s\" on host \"%s\"%s%s",
                          p->late.length ? "\n  " : "", v->vnic_id, v->holder,
                          !e            ? ": has not reported"
                          : *e->problem ? ": "
                                        : "",
                          e ? e->problem : "");
    }
}

static int wait_for_holders(struct db *db, const char *name, bool wanted, int64_t seconds,
                            struct progress *p)
{
    long long deadline = time_msec() + seconds * 1000;

    for (;;) {
        const struct moatrec_vm *vm = db_find_vm(db, name);

        if (!vm) {
            cli_error("VM \"%s\" was removed in the meantime", name);
            return CLI_FAILED;
        }
        look(db, vm, wanted, p);
        /* The database may show our own change a moment later than it confirmed it. */
        if (p->done == p->all && vm->quarantine == wanted)
            return CLI_OK;
        if (time_msec() >= deadline || (!db_wait_change(db, deadline) && time_msec() < deadline))
            break;
    }
    if (!ovsdb_idl_is_alive(db->idl)) {
        cli_error("it is written, but the database was lost while waiting for the hosts");
    } else {
        cli_error("it is written, but after %" PRId64 " s %zu of %zu vNICs do not enforce it:",
                  seconds, p->all - p->done, p->all);
        cli_hint("%s", ds_cstr(&p->late));
    }
    cli_hint("See: moatctl vm show %s; moatctl status", name);
    return CLI_FAILED;
}

static void print_quarantine(const struct cli *cli, const char *name, bool on,
                             const struct progress *p)
{
    if (!cli->json) {
        printf(on ? "VM \"%s\": quarantine ordered\n" : "VM \"%s\": released\n", name);
        return;
    }
    struct json *j = json_object_create();

    json_object_put_string(j, "vm", name);
    json_object_put(j, "quarantine", json_boolean_create(on));
    if (p) {
        json_object_put(j, "vnics", json_integer_create((long long)p->all));
        json_object_put(j, "vnics_enforcing", json_integer_create((long long)p->done));
    }
    json_print(j, stdout);
}

static int set_quarantine(const struct cli *cli, bool on)
{
    struct progress p = {.late = DS_EMPTY_INITIALIZER};
    const struct moatrec_vm *vm;
    int64_t wait = 0;
    struct db db;

    if (!cli_number(cli, CLI_OPT_WAIT, 0, 86400, &wait))
        return CLI_USAGE;
    if (!db_open(&db, cli, DB_VM | DB_ENFORCED))
        return CLI_FAILED;
    vm = db_find_vm(&db, cli->args[0]);
    if (!vm) {
        db_close(&db);
        return say_no_vm(cli->args[0]);
    }
    /* Written even if it is so: the log of the database then says who wanted it. */
    struct json *ops = db_ops(cli), *row = json_object_create();
    char *name = xstrdup(vm->name);
    json_object_put(row, "quarantine", json_boolean_create(on));
    db_require_row(ops, "VM", &vm->header_.uuid, "name", name);
    db_update(ops, "VM", db_where_uuid(&vm->header_.uuid), row);
    int status = db_commit(&db, ops);
    bool written = status == CLI_OK;
    if (written && !cli->json) {
        print_quarantine(cli, name, on, NULL);
        fflush(stdout);
    }
    if (written && wait) {
        status = wait_for_holders(&db, name, on, wait, &p);
        if (!cli->json && status == CLI_OK && p.all)
            printf("%zu of %zu vNICs enforce it\n", p.done, p.all);
        else if (!cli->json && status == CLI_OK)
            printf("no host has a vNIC of it\n");
    }
    if (written && cli->json)
        print_quarantine(cli, name, on, wait ? &p : NULL);
    free(name);
    ds_destroy(&p.late);
    db_close(&db);
    return status;
}

static int quarantine_vm(const struct cli *cli)
{
    return set_quarantine(cli, true);
}

static int release_vm(const struct cli *cli)
{
    return set_quarantine(cli, false);
}

/* --- vNICs ------------------------------------------------------------------ */

struct vnic_words {
    char *mac;
    const char *network;
    struct sset addresses, allowed;
};

static bool read_vnic_word(const struct cli *cli, const char *word, struct vnic_words *w)
{
    const char *value;
    char *canonical = NULL;
    size_t n;
    bool ok;

    if (!arg_split(word, &n, &value)) {
        cli_usage(cli, "\"%s\" is not key=value", word);
        return false;
    }
    if (n == 3 && !memcmp(word, "mac", n)) {
        free(w->mac);
        w->mac = NULL;
        return complain(cli, "mac", value, arg_mac(value, &w->mac));
    }
    if (n == 7 && !memcmp(word, "network", n)) {
        w->network = value;
        return complain(cli, "network", value, arg_name(value));
    }
    if (n == 7 && !memcmp(word, "address", n)) {
        if ((ok = complain(cli, "address", value, arg_address(value, &canonical))))
            sset_add(&w->addresses, canonical);
    } else if (n == 5 && !memcmp(word, "allow", n)) {
        if ((ok = complain(cli, "allow", value, arg_prefix(value, &canonical))))
            sset_add(&w->allowed, canonical);
    } else {
        cli_usage(cli, "\"%.*s\" is none of mac, network, address, allow", (int)n, word);
        ok = false;
    }
    free(canonical);
    return ok;
}

static bool read_vnic_words(const struct cli *cli, struct vnic_words *w)
{
    if (!complain(cli, "id", cli->args[1], arg_vnic_id(cli->args[1])))
        return false;
    for (size_t i = 2; i < cli->n_args; i++)
        if (!read_vnic_word(cli, cli->args[i], w))
            return false;
    if (!w->mac || !w->network) {
        cli_usage(cli, "%s= is missing", w->mac ? "network" : "mac");
        return false;
    }
    if (sset_count(&w->addresses) + sset_count(&w->allowed) > MOAT_ADDRS_MAX) {
        cli_usage(cli, "more than %d addresses and prefixes", MOAT_ADDRS_MAX);
        return false;
    }
    return true;
}

static bool same_address(const char *a, const char *b)
{
    struct arg_prefix x, y;

    return prefix_parse(a, &x) && prefix_parse(b, &y) && !memcmp(&x, &y, sizeof x);
}

/* Who else has one of these?  Says so. */
static bool is_taken(const struct db *db, const char *id, const struct moatrec_network *network,
                     const struct vnic_words *w)
{
    const struct moatrec_vm *vm;
    const char *addr;

    MOATREC_VM_FOR_EACH(vm, db->idl)
    for (size_t i = 0; i < vm->n_vnics; i++) {
        const struct moatrec_vnic *v = vm->vnics[i];

        if (!strcmp(v->vnic_id, id)) {
            cli_error("there is a vNIC \"%s\" already: it belongs to VM \"%s\"", id, vm->name);
            return true;
        }
        if (v->network != network)
            continue;
        if (!strcasecmp(v->mac, w->mac)) {
            cli_error("MAC %s belongs to vNIC \"%s\" of VM \"%s\" in network \"%s\"", w->mac,
                      v->vnic_id, vm->name, network->name);
            return true;
        }
        SSET_FOR_EACH(addr, &w->addresses)
        for (size_t a = 0; a < v->n_addresses; a++)
            if (same_address(v->addresses[a], addr)) {
                cli_error("address %s belongs to vNIC \"%s\" of VM \"%s\" in network \"%s\"", addr,
                          v->vnic_id, vm->name, network->name);
                cli_hint("An address that moves between VMs: give both allow=%s instead.", addr);
                return true;
            }
    }
    return false;
}

/* The transaction is refused if a vNIC of the network has this value by then. */
static void require_free(struct json *ops, const struct moatrec_network *network,
                         const char *column, const char *function, struct json *value)
{
    db_require(ops, "VNIC",
               json_array_create_2(db_triple("network", "==", db_uuid(&network->header_.uuid)),
                                   db_triple(column, function, value)),
               json_array_create_1(json_string_create("vnic_id")), json_array_create_empty());
}

static struct json *vnic_ops(const struct cli *cli, const struct moatrec_vm *vm,
                             const struct moatrec_network *network, const struct vnic_words *w)
{
    struct json *ops = db_ops(cli), *row = json_object_create();
    const char *addr;

    db_require_row(ops, "VM", &vm->header_.uuid, "name", vm->name);
    require_free(ops, network, "mac", "==", json_string_create(w->mac));
    SSET_FOR_EACH(addr, &w->addresses)
    require_free(ops, network, "addresses", "includes",
                 db_set(json_array_create_1(json_string_create(addr))));
    json_object_put_string(row, "vnic_id", cli->args[1]);
    json_object_put(row, "network", db_uuid(&network->header_.uuid));
    json_object_put_string(row, "mac", w->mac);
    json_object_put(row, "addresses", json_set(&w->addresses));
    json_object_put(row, "allowed_addresses", json_set(&w->allowed));
    db_insert(ops, "VNIC", "vnic", row);
    db_mutate(ops, "VM", db_where_uuid(&vm->header_.uuid),
              json_array_create_1(db_triple("vnics", "insert",
                                            db_set(json_array_create_1(db_named_uuid("vnic"))))));
    return ops;
}

/* Addresses outside of the network's subnets are probably a slip: say so. */
static bool outside_subnets(const struct moatrec_network *network, const char *addr)
{
    struct arg_prefix a, p;
    bool same_family = false;

    if (!prefix_parse(addr, &a))
        return false;
    for (size_t i = 0; i < network->n_subnets; i++)
        if (prefix_parse(network->subnets[i], &p) && p.family == a.family) {
            if (prefix_contains(&p, a.family, a.addr))
                return false;
            same_family = true;
        }
    return same_family;
}

static int insert_vnic(const struct cli *cli, struct db *db, const struct vnic_words *w)
{
    const struct moatrec_vm *vm = db_find_vm(db, cli->args[0]);
    const struct moatrec_network *network = db_find_network(db, w->network);
    const char *addr;

    if (!vm)
        return say_no_vm(cli->args[0]);
    if (!network) {
        cli_error("there is no network \"%s\"", w->network);
        cli_hint("Add it: moatctl network add %s subnet=PREFIX", w->network);
        return CLI_FAILED;
    }
    if (is_taken(db, cli->args[1], network, w))
        return CLI_FAILED;
    SSET_FOR_EACH(addr, &w->addresses)
    if (outside_subnets(network, addr)) {
        cli_error("address %s is in no subnet of network \"%s\"", addr, network->name);
        cli_hint("See: moatctl network list");
        return CLI_FAILED;
    }
    return db_commit(db, vnic_ops(cli, vm, network, w));
}

static int add_vnic(const struct cli *cli)
{
    struct vnic_words w = {.mac = NULL};
    int status = CLI_USAGE;
    struct db db;

    sset_init(&w.addresses);
    sset_init(&w.allowed);
    if (read_vnic_words(cli, &w)) {
        status = CLI_FAILED;
        if (db_open(&db, cli, DB_VM)) {
            status = insert_vnic(cli, &db, &w);
            db_close(&db);
        }
    }
    free(w.mac);
    sset_destroy(&w.addresses);
    sset_destroy(&w.allowed);
    return status;
}

static int remove_vnic(const struct cli *cli, struct db *db)
{
    const struct moatrec_vm *vm = db_find_vm(db, cli->args[0]), *owner = NULL;
    const struct moatrec_vnic *v = db_find_vnic(db, cli->args[1], &owner);

    if (!vm)
        return say_no_vm(cli->args[0]);
    if (!v || owner != vm) {
        cli_error("VM \"%s\" has no vNIC \"%s\"", vm->name, cli->args[1]);
        if (v)
            cli_hint("It belongs to VM \"%s\".", owner->name);
        else
            cli_hint("See: moatctl vm show %s", vm->name);
        return CLI_FAILED;
    }

    struct json *ops = db_ops(cli);
    db_require_row(ops, "VNIC", &v->header_.uuid, "vnic_id", v->vnic_id);
    db_mutate(ops, "VM", db_where_uuid(&vm->header_.uuid),
              json_array_create_1(db_triple(
                  "vnics", "delete", db_set(json_array_create_1(db_uuid(&v->header_.uuid))))));
    return db_commit(db, ops);
}

static int del_vnic(const struct cli *cli)
{
    int status;
    struct db db;

    if (!db_open(&db, cli, DB_VM))
        return CLI_FAILED;
    status = remove_vnic(cli, &db);
    db_close(&db);
    return status;
}

const struct cli_command vm_commands[] = {
    {"vm list", "", "list VMs", NULL, 0, 0, 0, true, list_vms},
    {"vm show", "NAME", "show a VM and its vNICs", NULL, 0, 1, 1, false, show_vm},
    {"vm add", "NAME [uuid=UUID] [label KEY=VALUE]... [host=HOST[,HOST]...]", "add a VM",
     "Without uuid= it gets a new one. host= names the hosts where it may run; without\n"
     "it, any. Policy speaks of VMs by label, name or UUID.",
     0, 1, 1000, false, add_vm},
    {"vm set", "NAME [name=NAME] [label KEY=VALUE]... [unlabel KEY]... [host=[HOST,...]]",
     "change a VM", "host= without a name: it may run on any host.", 0, 2, 1000, false, set_vm},
    {"vm del", "NAME", "remove a VM and its vNICs", NULL, 0, 1, 1, false, del_vm},
    {"vm quarantine", "NAME", "put a VM in quarantine, whatever the policy says",
     "It keeps ARP, neighbour discovery, DHCP and path MTU errors (the base tier); all else\n"
     "is dropped, and sessions that live now are cut. With --wait, exits 1 if the host that\n"
     "holds a vNIC does not enforce it in time; it is written all the same.",
     CLI_O(WAIT), 1, 1, false, quarantine_vm},
    {"vm release", "NAME", "end a quarantine that an operator ordered",
     "The policy decides again. A VM that no rule names stays in quarantine by policy.",
     CLI_O(WAIT), 1, 1, false, release_vm},
    {"vm vnic add", "VM ID mac=MAC network=NAME [address=ADDRESS]... [allow=PREFIX]...",
     "give a VM a vNIC",
     "ID is what the switch's port has as external_ids:iface-id. The vNIC may send from\n"
     "its addresses and from the allowed prefixes (for VRRP and the like), and policy\n"
     "knows it by them. A MAC and an address have one owner in a network.",
     0, 4, 1000, false, add_vnic},
    {"vm vnic del", "VM ID", "take a vNIC from a VM", NULL, 0, 2, 2, false, del_vnic},
    {.name = NULL},
};
