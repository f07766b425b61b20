/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/inventory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "policy/address.h"
#include "policy/text.h"

#define MAX_ROWS (1u << 20) /* of each kind */
#define MAX_PER_ROW 256     /* addresses or labels of one row */

/* --- Index ------------------------------------------------------------------------- */

enum table { NETWORKS, VMS, VNICS };

static const char *key_of(const struct moat_inventory *inv, enum table t, uint32_t row)
{
    return t == NETWORKS ? inv->networks[row].name
           : t == VMS    ? inv->vms[row].uuid
                         : inv->vnics[row].id;
}

static const struct inv_index *index_of(const struct moat_inventory *inv, enum table t)
{
    return t == NETWORKS ? &inv->by_network : t == VMS ? &inv->by_uuid : &inv->by_vnic;
}

/* The slot of a key, or the free one where it would go.  There is a free one. */
static uint32_t probe(const struct moat_inventory *inv, enum table t, const struct inv_index *ix,
                      const char *key)
{
    uint32_t i = (uint32_t)XXH3_64bits(key, strlen(key)) & (ix->size - 1);
    while (ix->slot[i] && strcmp(key_of(inv, t, ix->slot[i] - 1), key))
        i = (i + 1) & (ix->size - 1);
    return i;
}

static int find(const struct moat_inventory *inv, enum table t, const char *key)
{
    const struct inv_index *ix = index_of(inv, t);
    if (!ix->size)
        return -ENOENT;
    uint32_t row = ix->slot[probe(inv, t, ix, key)];
    return row ? (int)(row - 1) : -ENOENT;
}

/* Makes room for one more key, so that index_add cannot fail. */
static bool index_reserve(const struct moat_inventory *inv, enum table t, struct inv_index *ix)
{
    if (ix->n * 2 < ix->size)
        return true;
    struct inv_index more = {.n = ix->n, .size = ix->size ? ix->size * 2 : 16};
    more.slot = calloc(more.size, sizeof *more.slot);
    if (!more.slot)
        return false;
    for (uint32_t row = 0; row < ix->n; row++)
        more.slot[probe(inv, t, &more, key_of(inv, t, row))] = row + 1;
    free(ix->slot);
    *ix = more;
    return true;
}

static void index_add(const struct moat_inventory *inv, enum table t, struct inv_index *ix,
                      uint32_t row)
{
    ix->slot[probe(inv, t, ix, key_of(inv, t, row))] = row + 1;
    ix->n++;
}

/* --- Copies and checks ---------------------------------------------------------------- */

static bool good_string(const char *s, size_t max)
{
    if (!s)
        return false;
    size_t len = strnlen(s, max);
    return len > 0 && len < max && moat_text_clean(s, len, false) == len;
}

static bool good_uuid(const char *s, char out[37])
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
    if (!s || strnlen(s, 37) != 36)
        return false;
    for (int i = 0; i < 36; i++) {
        char c = s[i];
        if (c >= 'A' && c <= 'F')
            c = (char)(c - 'A' + 'a');
        bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
        if (shape[i] == '-' ? c != '-' : !hex)
            return false;
        out[i] = c;
    }
    out[36] = '\0';
    return true;
}

static bool good_addr(const struct moat_addr *a, bool host)
{
    uint8_t lo[16], hi[16];
    if (a->family != MOAT_FAM_IP4 && a->family != MOAT_FAM_IP6)
        return false;
    unsigned bits = a->family == MOAT_FAM_IP4 ? 32 : 128;
    if (a->plen > bits || (host && a->plen != bits))
        return false;
    return moat_prefix_bounds(a->addr, bits, a->plen, lo, hi);
}

static int copy_addrs(struct inv_addrs *out, const struct moat_addr *v, size_t n, bool host)
{
    if (n > MAX_PER_ROW)
        return -E2BIG;
    for (size_t i = 0; i < n; i++)
        if (!good_addr(&v[i], host))
            return -EINVAL;
    out->v = calloc(n ? n : 1, sizeof *out->v);
    if (!out->v)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        out->v[i].family = v[i].family;
        out->v[i].plen = v[i].plen;
        memcpy(out->v[i].addr, v[i].addr, v[i].family == MOAT_FAM_IP4 ? 4 : 16);
    }
    out->n = (uint32_t)n;
    return 0;
}

static bool reserve(void **v, uint32_t n, uint32_t *cap, size_t element)
{
    if (n < *cap)
        return true;
    uint32_t more = *cap ? *cap * 2 : 8;
    void *p = realloc(*v, more * element);
    if (!p)
        return false;
    *v = p;
    *cap = more;
    return true;
}

/* --- Rows ------------------------------------------------------------------------------- */

static void network_free(struct inv_network *w)
{
    free(w->name);
    free(w->subnets.v);
    free(w->gateways.v);
    free(w->dhcp_servers.v);
    free(w->metadata_servers.v);
    free(w->routers.v);
}

int moat_inventory_add_network(struct moat_inventory *inv, const struct moat_network_spec *s)
{
    struct inv_network w = {0};
    int err = -ENOMEM;

    if (!good_string(s->name, MOAT_POLICY_MAX_STRING))
        return -EINVAL;
    if (find(inv, NETWORKS, s->name) >= 0)
        return -EEXIST;
    if (inv->n_networks >= MAX_ROWS)
        return -E2BIG;
    if (!reserve((void **)&inv->networks, inv->n_networks, &inv->cap_networks, sizeof w) ||
        !index_reserve(inv, NETWORKS, &inv->by_network))
        return -ENOMEM;
    if (!(w.name = strdup(s->name)) ||
        (err = copy_addrs(&w.subnets, s->subnets, s->n_subnets, false)) ||
        (err = copy_addrs(&w.gateways, s->gateways, s->n_gateways, true)) ||
        (err = copy_addrs(&w.dhcp_servers, s->dhcp_servers, s->n_dhcp_servers, true)) ||
        (err = copy_addrs(&w.metadata_servers, s->metadata_servers, s->n_metadata_servers, true)) ||
        (err = copy_addrs(&w.routers, s->routers, s->n_routers, true))) {
        network_free(&w);
        return err;
    }
    inv->networks[inv->n_networks] = w;
    index_add(inv, NETWORKS, &inv->by_network, inv->n_networks);
    return (int)inv->n_networks++;
}

static void vm_free(struct inv_vm *vm)
{
    for (uint32_t i = 0; i < vm->n_labels; i++) {
        free(vm->labels[i].key);
        free(vm->labels[i].value);
    }
    free(vm->labels);
    free(vm->name);
}

int moat_inventory_add_vm(struct moat_inventory *inv, const struct moat_vm_spec *s)
{
    struct inv_vm vm = {.quarantine = s->quarantine};

    if (!good_uuid(s->uuid, vm.uuid) || !good_string(s->name, MOAT_POLICY_MAX_STRING))
        return -EINVAL;
    for (size_t i = 0; i < s->n_labels && i < MAX_PER_ROW; i++)
        if (!good_string(s->labels[i].key, MOAT_POLICY_MAX_STRING) ||
            !good_string(s->labels[i].value, MOAT_POLICY_MAX_STRING))
            return -EINVAL;
    if (find(inv, VMS, vm.uuid) >= 0)
        return -EEXIST;
    if (inv->n_vms >= MAX_ROWS || s->n_labels > MAX_PER_ROW)
        return -E2BIG;
    if (!reserve((void **)&inv->vms, inv->n_vms, &inv->cap_vms, sizeof vm) ||
        !index_reserve(inv, VMS, &inv->by_uuid))
        return -ENOMEM;
    vm.name = strdup(s->name);
    vm.labels = calloc(s->n_labels + 1, sizeof *vm.labels);
    bool ok = vm.name && vm.labels;
    for (size_t i = 0; ok && i < s->n_labels; i++) {
        struct inv_label *l = &vm.labels[vm.n_labels++];
        l->key = strdup(s->labels[i].key);
        l->value = strdup(s->labels[i].value);
        ok = l->key && l->value;
    }
    if (!ok) {
        vm_free(&vm);
        return -ENOMEM;
    }
    inv->vms[inv->n_vms] = vm;
    index_add(inv, VMS, &inv->by_uuid, inv->n_vms);
    return (int)inv->n_vms++;
}

int moat_inventory_add_vnic(struct moat_inventory *inv, const struct moat_vnic_spec *s)
{
    struct inv_vnic c = {.vm = s->vm, .network = s->network};
    int err;

    if (!good_string(s->id, MOAT_ID_MAX) || s->vm >= inv->n_vms || s->network >= inv->n_networks)
        return -EINVAL;
    if (find(inv, VNICS, s->id) >= 0)
        return -EEXIST;
    if (inv->n_vnics >= MAX_ROWS)
        return -E2BIG;
    if (!reserve((void **)&inv->vnics, inv->n_vnics, &inv->cap_vnics, sizeof c) ||
        !index_reserve(inv, VNICS, &inv->by_vnic))
        return -ENOMEM;
    memcpy(c.mac, s->mac, sizeof c.mac);
    if ((err = copy_addrs(&c.addrs, s->addrs, s->n_addrs, false)))
        return err;
    if (!(c.id = strdup(s->id))) {
        free(c.addrs.v);
        return -ENOMEM;
    }
    inv->vnics[inv->n_vnics] = c;
    index_add(inv, VNICS, &inv->by_vnic, inv->n_vnics);
    return (int)inv->n_vnics++;
}

/* --- The whole ---------------------------------------------------------------------------- */

struct moat_inventory *moat_inventory_create(void)
{
    return calloc(1, sizeof(struct moat_inventory));
}

void moat_inventory_destroy(struct moat_inventory *inv)
{
    if (!inv)
        return;
    for (uint32_t i = 0; i < inv->n_networks; i++)
        network_free(&inv->networks[i]);
    for (uint32_t i = 0; i < inv->n_vms; i++)
        vm_free(&inv->vms[i]);
    for (uint32_t i = 0; i < inv->n_vnics; i++) {
        free(inv->vnics[i].id);
        free(inv->vnics[i].addrs.v);
    }
    free(inv->networks);
    free(inv->vms);
    free(inv->vnics);
    free(inv->by_network.slot);
    free(inv->by_uuid.slot);
    free(inv->by_vnic.slot);
    free(inv);
}

void moat_inventory_set_quarantine(struct moat_inventory *inv, unsigned vm, bool quarantine)
{
    inv->vms[vm].quarantine = quarantine;
}

int moat_inventory_find_network(const struct moat_inventory *inv, const char *name)
{
    return find(inv, NETWORKS, name);
}

int moat_inventory_find_vm(const struct moat_inventory *inv, const char *uuid)
{
    char key[37];
    return good_uuid(uuid, key) ? find(inv, VMS, key) : -ENOENT;
}

int moat_inventory_find_vnic(const struct moat_inventory *inv, const char *id)
{
    return find(inv, VNICS, id);
}

unsigned moat_inventory_n_vms(const struct moat_inventory *inv)
{
    return inv->n_vms;
}

unsigned moat_inventory_n_vnics(const struct moat_inventory *inv)
{
    return inv->n_vnics;
}

unsigned moat_inventory_vm_of(const struct moat_inventory *inv, unsigned vnic)
{
    return inv->vnics[vnic].vm;
}
