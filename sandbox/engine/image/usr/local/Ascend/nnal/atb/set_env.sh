# Environment of the Ascend transformer boost library; to be sourced.
export ATB_HOME_PATH=/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1
export LD_LIBRARY_PATH=${ATB_HOME_PATH}/lib${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}
