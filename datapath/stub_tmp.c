#include "fragment.h"
#include "trace.h"
struct moat_fragments *moat_fragments_create(const struct moat_fragment_conf *c){(void)c;return (void*)1;}
void moat_fragments_destroy(struct moat_fragments *f){(void)f;}
enum moat_fragment_say moat_fragment_in(struct moat_fragments *f, const struct moat_fragment_ctx *x,const struct moat_pkt *p, struct moat_key *k,uint64_t *h, bool *hk, enum moat_reason *r){(void)f;(void)x;(void)p;(void)k;(void)h;(void)hk;*r=MOAT_R_FRAG;return MOAT_FRAGMENT_REFUSE;}
unsigned moat_fragment_judged(struct moat_fragments *f, const struct moat_fragment_ctx *c,const struct moat_pkt *p, bool passed, const struct moat_key *key,uint64_t hash, moat_fragment_release_fn *fn, void *aux){(void)f;(void)c;(void)p;(void)passed;(void)key;(void)hash;(void)fn;(void)aux;return 0;}
unsigned moat_fragments_age(struct moat_fragments *f, uint32_t n){(void)f;(void)n;return 0;}
