/* SPDX-License-Identifier: Apache-2.0 */

/* Damages a mapping, for tests.  Files on a hugetlbfs can only be written through memory.
 *
 *   damage FILE header              one bit of the header
 *   damage FILE layout              the number of another layout
 *   damage FILE noise               the beginning is anything
 *   damage FILE slot VNIC           one bit of its state
 *   damage FILE conf VNIC           one bit of its configuration
 *   damage FILE ruleset VNIC        one bit of its ruleset
 *   damage FILE sessions            one bit of each session that lives
 */

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datapath/mapping.h"

static uint8_t *base;
static struct moat_mapping_head *head;

static int wrong(const char *what, const char *which)
{
    fprintf(stderr, "damage: %s: %s\n", what, which);
    return 1;
}

static void flip(uint64_t byte, unsigned bit)
{
    base[byte] ^= (uint8_t)(1u << bit);
    printf("bit %u of byte %llu\n", bit, (unsigned long long)byte);
}

static struct moat_slot_rec *slot_of(const char *vnic)
{
    struct moat_slot_rec *recs = (void *)(base + head->slots_off);

    for (uint32_t i = 0; i < head->n_slots; i++)
        if (recs[i].used && !strcmp(recs[i].conf[recs[i].conf_index & 1].vnic, vnic))
            return &recs[i];
    return NULL;
}

static uint64_t xorshift(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void damage_sessions(void)
{
    uint64_t random = 88172645463325252u;
    uint32_t n = 0;

    for (uint32_t i = 0; i < head->n_sessions; i++) {
        uint8_t *s = base + head->sessions_off + (uint64_t)i * head->session_size;
        bool live = false;

        for (uint32_t k = 0; k < head->session_size; k++)
            live |= s[k];
        if (!live)
            continue;
        s[xorshift(&random) % head->session_size] ^= (uint8_t)(1u << xorshift(&random) % 8);
        n++;
    }
    printf("%u sessions\n", n);
}

static int damage_slot(const char *what, const char *vnic)
{
    struct moat_slot_rec *r = slot_of(vnic);
    uint64_t at, index;

    if (!r)
        return wrong("no such vNIC", vnic);
    at = (uint64_t)((uint8_t *)r - base);
    index = (at - head->slots_off) / head->slot_size;
    if (!strcmp(what, "slot"))
        flip(at + offsetof(struct moat_slot_rec, state), 2);
    else if (!strcmp(what, "conf"))
        flip(at + (uint64_t)((uint8_t *)r->conf[r->conf_index & 1].mac - (uint8_t *)r), 0);
    else if (!strcmp(what, "ruleset"))
        flip(head->rulesets_off + (index * 2 + r->rules_index) * head->ruleset_size + 200, 4);
    else
        return wrong("what?", what);
    return 0;
}

int main(int argc, char **argv)
{
    struct stat st;
    int fd;

    if (argc < 3)
        return wrong("usage",
                     "damage FILE header|layout|noise|sessions, or slot|conf|ruleset VNIC");
    fd = open(argv[1], O_RDWR);
    if (fd < 0 || fstat(fd, &st))
        return wrong("cannot open", argv[1]);
    base = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return wrong("cannot map", argv[1]);
    head = (void *)base;
    if (!strcmp(argv[2], "header"))
        flip(offsetof(struct moat_mapping_head, seed) + 3, 5);
    else if (!strcmp(argv[2], "layout"))
        head->layout += 100;
    else if (!strcmp(argv[2], "noise"))
        for (unsigned i = 0; i < 4096; i++)
            base[i] = (uint8_t)(i * 2654435761u >> 13);
    else if (!strcmp(argv[2], "sessions"))
        damage_sessions();
    else
        return damage_slot(argv[2], argc > 3 ? argv[3] : "");
    return 0;
}
