/* SPDX-License-Identifier: Apache-2.0 */
/* Whose packets a replay judges: see subject.h. */

#include "subject.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "file.h"
#include "inventory.h"
#include "openvswitch/json.h"
#include "openvswitch/shash.h"
#include "util.h"

#define INVENTORY_MAX (16u << 20) /* bytes of the file */

struct subject_strings {
    struct json *file; /* names in vnics[] are its */
    struct moat_addr *addrs[MOAT_REPLAY_VNICS_MAX];
    char *ids[MOAT_REPLAY_VNICS_MAX];
};

/* --- from options --------------------------------------------------------------- */

static int read_addresses(const struct cli *cli, struct moat_addr *out, size_t *n)
{
    const char *s;

    *n = 0;
    for (size_t i = 0; (s = cli_next(cli, CLI_OPT_ADDRESS, &i));) {
        if (*n == MOAT_ADDRS_MAX)
            return cli_usage(cli, "more than %u addresses", MOAT_ADDRS_MAX);
        if (moat_addr_parse(s, &out[(*n)++]))
            return cli_usage(cli, "--address: \"%s\" is no address or prefix", s);
    }
    return CLI_OK;
}

static int add_vm(struct subject *s, const struct cli *cli)
{
    struct moat_label labels[64];
    struct moat_vm_spec vm = {.uuid = "00000000-0000-4000-8000-000000000000",
                              .name = cli->opts[CLI_OPT_NAME] ? cli->opts[CLI_OPT_NAME] : "vm",
                              .labels = labels};
    const char *text, *value;
    char *keys[64];
    size_t len;
    int rc = 0;

    for (size_t i = 0; !rc && (text = cli_next(cli, CLI_OPT_LABEL, &i));) {
        if (vm.n_labels == ARRAY_SIZE(labels))
            rc = cli_usage(cli, "more than %zu labels", ARRAY_SIZE(labels));
        else if (!arg_split(text, &len, &value) || !*value)
            rc = cli_usage(cli, "--label: \"%s\" is not KEY=VALUE", text);
        else
            labels[vm.n_labels] =
                (struct moat_label){keys[vm.n_labels] = xmemdup0(text, len), value};
        vm.n_labels += !rc;
    }
    if (!rc && moat_inventory_add_vm(s->inventory, &vm) < 0)
        rc = cli_usage(cli, "a name or label is empty, too long or has control characters");
    for (size_t i = 0; i < vm.n_labels; i++)
        free(keys[i]);
    return rc;
}

static int add_vnic(struct subject *s, const struct cli *cli, const char *mac,
                    const struct moat_addr *addrs, size_t n_addrs)
{
    struct moat_vnic_spec spec = {.addrs = addrs, .n_addrs = n_addrs};
    struct moat_replay_vnic *v = &s->vnics[s->n_vnics];

    if (s->n_vnics == MOAT_REPLAY_VNICS_MAX)
        return cli_usage(cli, "more than %u MACs", MOAT_REPLAY_VNICS_MAX);
    v->has_mac = mac;
    if (mac && (!moat_mac_parse(mac, v->mac) || v->mac[0] & 1))
        return cli_usage(cli, "--mac: \"%s\" is no MAC of one station", mac);
    s->strings->ids[s->n_vnics] = xasprintf("vnic-%zu", s->n_vnics);
    s->strings->addrs[s->n_vnics] = xmemdup(addrs, n_addrs * sizeof *addrs);
    spec.id = v->id = s->strings->ids[s->n_vnics];
    v->vm = cli->opts[CLI_OPT_NAME] ? cli->opts[CLI_OPT_NAME] : "vm";
    v->network = "replay";
    v->addrs = s->strings->addrs[s->n_vnics];
    v->n_addrs = n_addrs;
    memcpy(spec.mac, v->mac, sizeof spec.mac);
    s->n_vnics++;
    v->vnic = (unsigned)moat_inventory_add_vnic(s->inventory, &spec);
    return CLI_OK;
}

static int from_options(struct subject *s, const struct cli *cli)
{
    static const struct moat_network_spec network = {.name = "replay"};
    struct moat_addr addrs[MOAT_ADDRS_MAX];
    const char *mac;
    size_t n_addrs, at = 0;
    int rc;

    if (!cli->opts[CLI_OPT_MAC] && !cli->opts[CLI_OPT_ADDRESS])
        return cli_usage(cli, "whose packets? --mac, --address or --inventory says so");
    if (moat_inventory_add_network(s->inventory, &network) < 0)
        out_of_memory();
    rc = read_addresses(cli, addrs, &n_addrs);
    rc = rc ? rc : add_vm(s, cli);
    if (!rc && !cli->opts[CLI_OPT_MAC])
        rc = add_vnic(s, cli, NULL, addrs, n_addrs);
    while (!rc && (mac = cli_next(cli, CLI_OPT_MAC, &at)))
        rc = add_vnic(s, cli, mac, addrs, n_addrs);
    return rc;
}

/* --- from a file ----------------------------------------------------------------- */

struct reader {
    struct subject *s;
    const char *file, *vm; /* NULL: the only one */
    unsigned n_vms, n_found;
    bool failed;
};

static void bad(struct reader *r, const char *where, const char *name, const char *what)
{
    if (!r->failed)
        cli_error("%s: %s%s%s%s: %s", file_name(r->file), where, *name ? " \"" : "", name,
                  *name ? "\"" : "", what);
    r->failed = true;
}

/* A member of an object; NULL: it is missing or, having said so, of another type. */
static const struct json *member(struct reader *r, const struct json *object, const char *key,
                                 enum json_type type)
{
    const struct json *j = shash_find_data(json_object(object), key);

    if (!j || j->type == type)
        return j;
    bad(r, "member", key, "is not what it should be");
    return NULL;
}

static const char *string(struct reader *r, const struct json *object, const char *key)
{
    const struct json *j = member(r, object, key, JSON_STRING);

    return j ? json_string(j) : "";
}

/* Appends the addresses of a list to a, which has room for `max`. */
static void addresses(struct reader *r, const struct json *object, const char *key,
                      struct moat_addr *a, size_t *n, size_t max)
{
    const struct json *list = member(r, object, key, JSON_ARRAY);

    for (size_t i = 0; list && i < json_array(list)->n; i++) {
        const struct json *j = json_array(list)->elems[i];
        const char *text = j->type == JSON_STRING ? json_string(j) : "";

        if (*n == max)
            bad(r, "list", key, "has too many addresses");
        else if (moat_addr_parse(text, &a[(*n)++]))
            bad(r, key, text, "is no address");
        if (r->failed)
            return;
    }
}

static void read_network(struct reader *r, const struct json *object)
{
    struct moat_addr a[5][64];
    size_t n[5] = {0};
    static const char *const keys[5] = {"subnets", "gateways", "dhcp_servers", "metadata_servers",
                                        "routers"};
    struct moat_network_spec spec = {.name = string(r, object, "name")};
    int rc;

    for (int i = 0; i < 5; i++)
        addresses(r, object, keys[i], a[i], &n[i], 64);
    spec.subnets = a[0], spec.n_subnets = n[0];
    spec.gateways = a[1], spec.n_gateways = n[1];
    spec.dhcp_servers = a[2], spec.n_dhcp_servers = n[2];
    spec.metadata_servers = a[3], spec.n_metadata_servers = n[3];
    spec.routers = a[4], spec.n_routers = n[4];
    rc = r->failed ? 0 : moat_inventory_add_network(r->s->inventory, &spec);
    if (rc < 0)
        bad(r, "network", spec.name,
            rc == -EEXIST ? "is there twice" : "has a name or address that cannot be");
}

/* The vNIC is one of those whose packets are judged. */
static void keep_vnic(struct reader *r, const char *vm, const char *network,
                      const struct moat_vnic_spec *spec, int vnic)
{
    struct subject *s = r->s;

    if (s->n_vnics == MOAT_REPLAY_VNICS_MAX) {
        bad(r, "VM", vm, "has too many vNICs");
        return;
    }
    s->strings->addrs[s->n_vnics] = xmemdup(spec->addrs, spec->n_addrs * sizeof *spec->addrs);
    s->vnics[s->n_vnics] = (struct moat_replay_vnic){.vnic = (unsigned)vnic,
                                                     .id = spec->id,
                                                     .vm = vm,
                                                     .network = network,
                                                     .has_mac = true,
                                                     .addrs = s->strings->addrs[s->n_vnics],
                                                     .n_addrs = spec->n_addrs};
    memcpy(s->vnics[s->n_vnics++].mac, spec->mac, sizeof spec->mac);
}

static void read_vnic(struct reader *r, const struct json *object, const char *vm,
                      unsigned vm_index, bool is_subject)
{
    struct moat_addr a[MOAT_ADDRS_MAX];
    size_t n = 0;
    const char *network = string(r, object, "network");
    struct moat_vnic_spec spec = {.id = string(r, object, "vnic"), .vm = vm_index, .addrs = a};
    int net = moat_inventory_find_network(r->s->inventory, network), rc;

    addresses(r, object, "addresses", a, &n, MOAT_ADDRS_MAX);
    addresses(r, object, "allowed_addresses", a, &n, MOAT_ADDRS_MAX);
    spec.n_addrs = n;
    spec.network = (unsigned)net;
    if (!moat_mac_parse(string(r, object, "mac"), spec.mac))
        bad(r, "vNIC", spec.id, "has no MAC, or one that is none");
    if (net < 0)
        bad(r, "vNIC", spec.id, "names a network that is not there");
    if (r->failed)
        return;
    rc = moat_inventory_add_vnic(r->s->inventory, &spec);
    if (rc < 0)
        bad(r, "vNIC", spec.id, rc == -EEXIST ? "is there twice" : "has an id that cannot be");
    else if (is_subject)
        keep_vnic(r, vm, network, &spec, rc);
}

static void read_vm(struct reader *r, const struct json *object)
{
    const struct json *labels = member(r, object, "labels", JSON_OBJECT);
    const struct json *vnics = member(r, object, "vnics", JSON_ARRAY);
    char *uuid = xasprintf("00000000-0000-4000-8000-%012x", r->n_vms++);
    struct moat_vm_spec spec = {.name = string(r, object, "name"),
                                .uuid = string(r, object, "uuid")};
    size_t n = labels ? shash_count(json_object(labels)) : 0;
    struct moat_label *l = xcalloc(n + 1, sizeof *l);
    struct shash_node *node;
    bool is_subject;
    int vm;

    if (!*spec.uuid)
        spec.uuid = uuid;
    if (labels)
        SHASH_FOR_EACH(node, json_object(labels))
        {
            const struct json *value = node->data;

            l[spec.n_labels++] = (struct moat_label){
                node->name, value->type == JSON_STRING ? json_string(value) : ""};
        }
    spec.labels = l;
    vm = r->failed ? -EINVAL : moat_inventory_add_vm(r->s->inventory, &spec);
    if (vm < 0)
        bad(r, "VM", spec.name,
            vm == -EEXIST ? "has a UUID that is there twice"
                          : "has a name, UUID or label that cannot be");
    is_subject = !r->vm || !strcmp(r->vm, spec.name) || !strcmp(r->vm, spec.uuid);
    r->n_found += vm >= 0 && is_subject;
    for (size_t i = 0; vm >= 0 && vnics && i < json_array(vnics)->n && !r->failed; i++) {
        const struct json *v = json_array(vnics)->elems[i];

        if (v->type != JSON_OBJECT)
            bad(r, "VM", spec.name, "has a vNIC that is no object");
        else
            read_vnic(r, v, spec.name, (unsigned)vm, is_subject);
    }
    free(l);
    free(uuid);
}

static void read_list(struct reader *r, const struct json *root, const char *key,
                      void (*one)(struct reader *, const struct json *))
{
    const struct json *list = member(r, root, key, JSON_ARRAY);

    if (!list) {
        bad(r, "list", key, "is missing");
        return;
    }
    for (size_t i = 0; i < json_array(list)->n && !r->failed; i++) {
        if (json_array(list)->elems[i]->type == JSON_OBJECT)
            one(r, json_array(list)->elems[i]);
        else
            bad(r, "list", key, "has something that is no object");
    }
}

static int from_file(struct subject *s, const struct cli *cli)
{
    struct reader r = {.s = s, .file = cli->opts[CLI_OPT_INVENTORY], .vm = cli->opts[CLI_OPT_NAME]};
    size_t len;
    char *text = file_read(r.file, INVENTORY_MAX, &len);
    struct json *root = text ? json_from_string(text) : NULL;

    free(text);
    if (!root)
        return CLI_FAILED;
    s->strings->file = root;
    if (root->type != JSON_OBJECT) {
        cli_error("%s: %s", file_name(r.file),
                  root->type == JSON_STRING ? json_string(root) : "is no JSON object");
        return CLI_FAILED;
    }
    read_list(&r, root, "networks", read_network);
    if (!r.failed)
        read_list(&r, root, "vms", read_vm);
    if (r.failed)
        return CLI_FAILED;
    if (r.n_found != 1) {
        cli_error(r.vm ? "%s has %u VMs \"%s\", not one" : "%s has %u VMs%s: --name says which",
                  file_name(r.file), r.n_found, r.vm ? r.vm : "");
        return CLI_FAILED;
    }
    if (!s->n_vnics) {
        cli_error("%s: the VM has no vNIC", file_name(r.file));
        return CLI_FAILED;
    }
    return CLI_OK;
}

/* --- both -------------------------------------------------------------------------- */

int subject_open(struct subject *s, const struct cli *cli)
{
    int rc;

    memset(s, 0, sizeof *s);
    if (cli->opts[CLI_OPT_INVENTORY] &&
        (cli->opts[CLI_OPT_MAC] || cli->opts[CLI_OPT_ADDRESS] || cli->opts[CLI_OPT_LABEL]))
        return cli_usage(cli, "the inventory says what --mac, --address and --label would");
    s->inventory = moat_inventory_create();
    if (!s->inventory)
        out_of_memory();
    s->strings = xzalloc(sizeof *s->strings);
    rc = cli->opts[CLI_OPT_INVENTORY] ? from_file(s, cli) : from_options(s, cli);
    if (rc)
        subject_close(s);
    return rc;
}

void subject_close(struct subject *s)
{
    moat_inventory_destroy(s->inventory);
    if (s->strings) {
        for (size_t i = 0; i < MOAT_REPLAY_VNICS_MAX; i++) {
            free(s->strings->addrs[i]);
            free(s->strings->ids[i]);
        }
        json_destroy(s->strings->file);
        free(s->strings);
    }
    memset(s, 0, sizeof *s);
}
