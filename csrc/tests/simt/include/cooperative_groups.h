// Stands in for CUDA's header: the cluster of blocks.
#pragma once

#include "../simt.h"

namespace cooperative_groups {

struct cluster_group {
  void sync(SIMT_SITE) const { simt::meet_cluster(site); }
  unsigned num_blocks() const { return simt::blocks_of_cluster(); }
  unsigned block_rank() const { return simt::rank_in_cluster(); }
  template <typename T>
  T* map_shared_rank(T* mine, unsigned rank) const {
    return static_cast<T*>(simt::in_cluster(mine, rank));
  }
};

inline cluster_group this_cluster() {
  return {};
}

}  // namespace cooperative_groups
